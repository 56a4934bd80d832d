// Two CUDA devices whose memory and arithmetic are the CPU's, for a torch built without CUDA.
//
// Tensors dispatch on the key CUDA and are computed by the CPU's kernels, so that every branch that
// asks for a GPU is taken and the numbers are true. Tensors on different devices in one operation
// are errors, as on a GPU. There are no streams and no kernels: speed and memory mean nothing here.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

namespace {

constexpr at::DeviceIndex kDevices = 2;
constexpr auto kMath = 0, kFlash = 1, kEfficient = 2;  // as at::SDPBackend has them
thread_local at::DeviceIndex current = 0;
std::array<std::atomic<int>, 3> chosen{};  // calls of attention by backend

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = c10::DeviceType::CUDA;
  c10::DeviceType type() const override { return static_type; }
  c10::Device exchangeDevice(c10::Device device) const override {
    auto before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override { return {static_type, current}; }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() < kDevices, "CUDA error: invalid device ordinal");
    uncheckedSetDevice(device);
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index()) current = device.index();
  }
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream getNewStream(c10::Device device, int) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

struct HostMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = bytes ? std::malloc(bytes) : nullptr;
    return {memory, memory, &std::free, c10::Device(c10::DeviceType::CUDA, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
HostMemory memory;

// Pinned memory of the host: copies from it wait for nothing.
struct PinnedMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* block = std::malloc(bytes ? bytes : 1);
    std::lock_guard<std::mutex> lock(mutex);
    blocks[block] = bytes;
    return {block, block, &PinnedMemory::release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &PinnedMemory::release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
  static bool holds(const void* pointer) {
    std::lock_guard<std::mutex> lock(mutex);
    auto after = blocks.upper_bound(const_cast<void*>(pointer));
    if (after == blocks.begin()) return false;
    auto block = std::prev(after);
    return static_cast<const char*>(pointer) <= static_cast<char*>(block->first) + block->second;
  }
  static void release(void* block) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      blocks.erase(block);
    }
    std::free(block);
  }
  static std::mutex mutex;
  static std::map<void*, size_t> blocks;
};
std::mutex PinnedMemory::mutex;
std::map<void*, size_t> PinnedMemory::blocks;
PinnedMemory pinned;

// The same memory as a CPU tensor.
at::Tensor on_host(const at::Tensor& tensor) {
  if (!tensor.is_cuda()) return tensor;
  auto options = at::TensorOptions().dtype(tensor.dtype()).device(at::kCPU);
  return at::from_blob(tensor.mutable_data_ptr(), tensor.sizes(), tensor.strides(), options);
}

c10::Device named(std::optional<at::Device> asked) {
  auto device = asked.value_or(c10::Device(c10::DeviceType::CUDA, current));
  return device.has_index() ? device : c10::Device(device.type(), current);
}

const c10::DispatchKeySet kKeys(c10::DispatchKey::CUDA);

at::Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> type,
                 std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  c10::DeviceGuard guard(named(device));
  return at::detail::empty_generic(sizes, &memory, kKeys, c10::dtype_or_default(type), format);
}

at::Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides,
                         std::optional<at::ScalarType> type, std::optional<at::Layout>,
                         std::optional<at::Device> device, std::optional<bool>) {
  c10::DeviceGuard guard(named(device));
  return at::detail::empty_strided_generic(
      sizes, strides, &memory, kKeys, c10::dtype_or_default(type));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  on_host(to).copy_(on_host(from));
  return to;
}

at::Tensor& copy_to(at::Tensor& to, const at::Tensor& from, bool) {
  on_host(to).copy_(on_host(from));
  return to;
}

const at::Tensor& resize(
    const at::Tensor& self, at::IntArrayRef sizes, std::optional<at::MemoryFormat>) {
  c10::DeviceGuard guard(self.device());
  size_t numbers = self.storage_offset();
  numbers += c10::multiply_integers(sizes);
  size_t bytes = numbers * self.dtype().itemsize();
  auto* storage = self.storage().unsafeGetStorageImpl();
  if (storage->nbytes() < bytes) {
    auto larger = memory.allocate(bytes);
    if (storage->nbytes()) std::memcpy(larger.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(larger));
    storage->set_nbytes(bytes);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return self;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.sizes() != from.sizes()) resize(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

at::Scalar item(const at::Tensor& tensor) { return on_host(tensor).item(); }

at::Tensor& set_storage(at::Tensor& self, at::Storage source, int64_t offset,
                        at::IntArrayRef sizes, at::IntArrayRef strides) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, offset);
  return self;
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return set_storage(
      self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

// CUDA's kernels take indices, and values of no dimension, from the CPU.
bool takes_the_cpus(const std::string& name) {
  return name.rfind("aten::index.", 0) == 0 || name.rfind("aten::index_put", 0) == 0 ||
      name == "aten::_index_put_impl_";
}

struct Devices {
  bool cpu = false, cuda = false, several = false;
  int index = -1;

  void see(const at::Tensor& tensor) {
    if (!tensor.defined() || tensor.dim() == 0) {
      cuda = cuda || (tensor.defined() && tensor.is_cuda());
      return;
    }
    if (!tensor.is_cuda()) {
      cpu = true;
      return;
    }
    cuda = true;
    several = several || (index >= 0 && index != tensor.device().index());
    index = tensor.device().index();
  }

  void see(const c10::IValue& value) {
    if (value.isTensor()) {
      see(value.toTensor());
    } else if (value.isTensorList()) {
      for (const auto& each : value.toTensorVector()) see(each);
    } else if (value.isOptionalTensorList()) {
      for (const std::optional<at::Tensor>& each : value.toOptionalTensorVector())
        if (each) see(*each);
    }
  }
};

void by_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  auto name = c10::toString(op.operator_name());
  Devices found;
  for (const auto& each : torch::jit::last(*stack, op.schema().arguments().size())) found.see(each);
  bool mixed = found.several || (found.cuda && found.cpu && !takes_the_cpus(name));
  TORCH_CHECK(
      !mixed,
      "Expected all tensors to be on the same device, but found at least two devices (", name, ")");
  at::native::cpu_fallback(op, stack);
}

bool is_half(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
}

// Which attention an Ampere card would take: flash for half types without a mask, memory-efficient
// for float32 and masks but never for grouped queries, else plain products.
int64_t attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  const std::optional<at::Tensor>& mask, double dropout, bool,
                  std::optional<double>, bool) {
  bool grouped = query.dim() == 4 && query.size(1) != key.size(1);
  bool dense = query.dim() == 4 && query.stride(-1) == 1 && key.stride(-1) == 1 &&
      value.stride(-1) == 1 && dropout == 0.0;
  auto backend = kMath;
  if (dense && is_half(query) && !mask && query.size(3) <= 256) {
    backend = kFlash;
  } else if (dense && !grouped && query.scalar_type() != at::kDouble) {
    backend = kEfficient;
  }
  ++chosen[backend];
  return backend;
}

}  // namespace

namespace at {

// The registry makes hooks of this name the first time that they are asked for.
struct FakeCUDAHooks final : CUDAHooksInterface {
  explicit FakeCUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex current_device() const override { return current; }
  DeviceIndex getCurrentDevice() const override { return current; }
  DeviceIndex deviceCount() const override { return kDevices; }
  int getNumGPUs() const override { return kDevices; }
  void setCurrentDevice(DeviceIndex device) const override { current = device; }
  DeviceIndex exchangeDevice(DeviceIndex device) const override {
    return std::exchange(current, device);
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex device) const override {
    return std::exchange(current, device);
  }
  bool isPinnedPtr(const void* pointer) const override { return PinnedMemory::holds(pointer); }
  Allocator* getPinnedMemoryAllocator() const override { return &pinned; }
  const Generator& getDefaultGenerator(DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  void deviceSynchronize(DeviceIndex) const override {}
};
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", FakeCUDAHooks)

namespace native {
REGISTER_CUDA_DISPATCH(_fused_sdp_choice_stub, &attention)
}

}  // namespace at

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&by_cpu>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("copy_", copy_to);
  library.impl("_copy_from", copy_from);
  library.impl("_copy_from_and_resize", copy_from_and_resize);
  library.impl("resize_", resize);
  library.impl("_local_scalar_dense", item);
  library.impl("as_strided", at::native::as_strided_tensorimpl);
  library.impl("view", at::native::view);
  library.impl("_reshape_alias", at::native::_reshape_alias);
  library.impl("unfold", at::native::unfold);
  library.impl("set_.source_Storage_storage_offset", set_storage);
  library.impl("set_.source_Tensor", set_tensor);
}

static bool registered = [] {
  c10::SetAllocator(c10::DeviceType::CUDA, &memory, 1);
  return true;
}();

extern "C" {
int fake_cuda_chosen(int backend) { return chosen[backend]; }
int fake_cuda_current() { return current; }
int fake_cuda_exchange(int device) {
  return std::exchange(current, static_cast<at::DeviceIndex>(device));
}
}
