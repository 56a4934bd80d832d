"""Corrections and savings for GPUs, each taken back by one line: a test on the fake device fails.

Put in like the faults of planted.py, by `make faults`. Where the fake device is not needed to see
the difference, the test is one for a CPU.
"""

from planted import Fault

MARKED = "fake_cuda/test_marked.py"
STEPS = "fake_cuda/test_steps.py"
IN_BF16 = f"{STEPS}::test_it_learns_in_every_precision"
RHO = f"{STEPS}::test_a_selection_waits_only_for_what_its_cache_writes_to_the_disk"
ATTENTION = "unit/models/test_attention.py"
AT_ONCE = f"{ATTENTION}::test_on_a_gpu_in_half_all_documents_attend_at_once"
WITHOUT = f"{ATTENTION}::test_without_a_kernel_that_is_exact_documents_attend_one_by_one"
GROUPS = f"{ATTENTION}::test_a_kernel_that_knows_no_groups_gets_keys_for_each_query"
LARGE = "unit/objective/test_chunked_loss.py::test_half_types_keep_the_gradient_of_a_large_step"
LAUNCHERS = "unit/cli/test_launchers.py"

GPU_FAULTS = [
    # Attention of packed rows
    Fault(
        "queries float32 where attention is chosen",
        "kdcore/models/attention.py",
        'if kind != "cuda" or not torch.is_autocast_enabled(kind):',
        "if True:",
        AT_ONCE,
        device=True,
    ),
    Fault(
        "packed attention proved in another type than it trains in",
        "kdcore/models/causal_lm.py",
        "with self._autocast():",
        "with nullcontext():",
        AT_ONCE,
        device=True,
    ),
    Fault(
        "a torch without the flash kernel ends the run",
        "kdcore/models/attention.py",
        "except ImportError:",
        "except KeyError:",
        WITHOUT,
        device=True,
    ),
    Fault(
        "grouped queries for a kernel that knows no groups",
        "kdcore/models/attention.py",
        "if knows_groups:",
        "if True:",
        GROUPS,
        device=True,
    ),
    Fault(
        "two right kernels are said to differ",
        "kdcore/models/attention.py",
        "_KERNELS_APART = 2e-2  # largest relative difference of two kernels in half precision",
        "_KERNELS_APART = 1e-3",
        "unit/models/test_attention.py",
    ),
    Fault(
        "grouped queries in float32 by plain products",
        "kdcore/models/attention.py",
        "if query.is_cuda and query.dtype not in _HALF and query.shape[1] != key.shape[1]:",
        "if False:",
        f"{STEPS}::test_grouped_queries_in_float32_never_take_the_products_of_time_and_time",
    ),
    Fault(
        "a kernel that mixes documents passes the proof",
        "kdcore/models/attention.py",
        "exact.append(_near(_at_once(some, packing, options), wanted))",
        "exact.append(_at_once(some, packing, options) is not None)",
        WITHOUT,
        device=True,
    ),
    # Precision
    Fault(
        "a loss scaler that is not ready after a skipped step",
        "kdcore/training/non_finite.py",
        "scaler.update()  # a step of the optimizer would have: gradients are unscaled once",
        "pass",
        "unit/training/test_non_finite.py",
    ),
    Fault(
        "the logits' gradient not scaled before float16",
        "kdcore/models/head.py",
        "if not weights.is_cuda or operand != torch.float16 or not weights.numel():",
        "if True:",
        LARGE,
        device=True,
    ),
    Fault(
        "bf16 on a CPU next to a GPU",
        "kdcore/models/loading.py",
        'return "no"  # bf16 on a CPU without hardware support is ten times slower',
        'return "bf16"',
        f"{STEPS}::test_a_cpu_that_was_asked_for_computes_in_float32",
    ),
    Fault(
        "accelerate divides the scaled loss",
        "kdcore/training/step.py",
        "(loss if scaler is None else scaler.scale(loss)).backward()",
        "self.accelerator.backward(loss)",
        "unit/training/test_trainer.py::test_a_scaler_scales_the_loss_and_nothing_divides_it",
    ),
    # Libraries and launchers
    Fault(
        "adagrad fused where CUDA has no such kernel",
        "kdcore/optim.py",
        "except RuntimeError:",
        "except KeyError:",
        "unit/test_optim.py",
    ),
    Fault(
        "a torch that is too old",
        "kdcore/training/setup.py",
        "if found < oldest:",
        "if False:",
        "fake_cuda/test_refusals.py::test_a_torch_that_is_too_old",
    ),
    Fault(
        "FSDP of a launcher",
        "kdcore/cli/launchers.py",
        'if environment.get(variable, "").lower() in YES:',
        "if False:",
        LAUNCHERS,
    ),
    Fault(
        "tasks of srun that do not know each other",
        "kdcore/cli/launchers.py",
        "return int(tasks) > 1 or int(number) > 0",
        "return False",
        LAUNCHERS,
    ),
    Fault(
        "two processes on one GPU",
        "kdcore/cli/launchers.py",
        "elif gpus < processes:",
        "elif False:",
        LAUNCHERS,
    ),
    Fault(
        "processes without a GPU believe to be alone",
        "kdcore/cli/launchers.py",
        'environment["ACCELERATE_USE_CPU"] = "true"',
        "pass",
        LAUNCHERS,
    ),
    # Several processes
    Fault(
        "processes wait in a collective while one tokenises",
        "kdcore/distributed/disks.py",
        'heard(store, f"{turn}/{leader}", leader)',
        "accelerator.wait_for_everyone()",
        "unit/test_distributed.py unit/test_disks.py",
    ),
    Fault(
        "no checkpoint of the process that is out of memory",
        "kdcore/training/micro_batch.py",
        "self._save_alone()",
        "pass",
        "unit/training/test_micro_batch_oom.py unit/cli/test_launch.py",
    ),
    Fault(
        "ten minutes for a GPU process that cannot save",
        "kdcore/cli/launch.py",
        "return _TO_SAVE if StartAgain.exit_code in codes and hears else _TO_END",
        "return _TO_SAVE if StartAgain.exit_code in codes else _TO_END",
        LAUNCHERS,
    ),
    # Memory
    Fault(
        "no memory, said by the driver",
        "kdcore/errors.py",
        '"CUDA error: out of memory",',
        '"never",',
        "unit/training/test_micro_batch.py",
    ),
    Fault(
        "a probe without a margin",
        "kdcore/training/micro_batch.py",
        "margin = torch.empty("
        "int(MARGIN * _usable(run.device)), dtype=torch.uint8, device=run.device)",
        "margin = None",
        "unit/training/test_micro_batch.py::"
        "test_a_probe_leaves_a_tenth_of_the_memory_that_the_process_may_take",
        device=True,
    ),
    Fault(
        "a probe shows made-up rows to a teacher that stores them",
        "kdcore/training/micro_batch.py",
        "longest = _longest(step, rows)",
        "longest: list[Row] = []",
        f"{STEPS}::test_a_probe_for_the_micro_batch_stores_nothing_of_made_up_rows",
    ),
    Fault(
        "an allocator of fixed segments",
        "kdcore/cli/main.py",
        'os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")',
        "pass",
        "unit/cli/test_main.py",
    ),
    # The host waits for the device
    Fault(
        "the count of tokens made of a number of the host",
        "kdcore/objective/selection.py",
        "result = SelectionResult(total(torch.full((), float(here), device=run.device)))",
        "result = SelectionResult(total(torch.tensor(float(here), device=run.device)))",
        IN_BF16,
    ),
    Fault(
        "rows copied out of pageable memory",
        "kdcore/data/collate.py",
        "return tensor.pin_memory().to(device, non_blocking=True)",
        "return tensor.to(device)",
        IN_BF16,
    ),
    Fault(
        "verdicts on steps read in each step",
        "kdcore/training/non_finite.py",
        "self.deferred = on_gpu and accelerator.scaler is None and fused",
        "self.deferred = False",
        IN_BF16,
    ),
    Fault(
        "kept tokens counted by the device",
        "kdcore/objective/objective.py",
        "if _count_needs_sync(valid):",
        "if False:",
        RHO,
    ),
    Fault(
        "places of tokens read from the device",
        "plugins/kdcore_cached/places.py",
        "if batch.on_host is not None:",
        "if False:",
        RHO,
    ),
    Fault(
        "pads are looked for",
        "kdcore/models/causal_lm.py",
        'vars(self._trunk)["warn_if_padding_and_no_attention_mask"] = _say_nothing',
        "pass",
        "unit/models/test_causal_lm.py::test_pads_are_not_looked_for",
    ),
    # Work and memory that is saved
    Fault(
        "a chunk's gradient cast for each product",
        "kdcore/models/head.py",
        "return torch.mm(self._gradient, weight, out_dtype=torch.float32)",
        "return torch.mm(self._gradient.float().to(weight.dtype), weight, out_dtype=torch.float32)",
        f"{STEPS}::test_packed_attention_and_the_kernels_of_a_layer",
    ),
    Fault(
        "an offloaded layer in pageable memory",
        "kdcore/models/offload.py",
        'memory = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")',
        "memory = torch.empty(size, dtype=torch.uint8)",
        f"{STEPS}::test_an_offloaded_teacher_says_the_same_and_nothing_waits_for_its_layers",
    ),
    Fault(
        "the next layer not sent ahead",
        "kdcore/models/offload.py",
        "self._send(number + 1)",
        "pass",
        "unit/models/test_offload.py",
    ),
    Fault(
        "logits of a teacher on another device, not its states",
        "plugins/kdcore_hf.py",
        "self._head = self._model.head(run.device) if device != run.device else None",
        "self._head = None",
        MARKED,
    ),
    Fault(
        "losses of evaluations not compiled",
        "kdcore/training/setup.py",
        "run.compiled = per_token_for(run)",
        "run.compiled = None",
        "unit/training/test_micro_batch_chunks.py",
    ),
    # CUDA graphs and working weights
    Fault(
        "warming up a graph draws dropout",
        "kdcore/training/gpu/graphs.py",
        "before.restore()  # the warm-up draws dropout, and a resumed run captures anew",
        "pass",
        f"{STEPS}::test_cuda_graphs_draw_the_dropout_of_a_run_without_them",
    ),
    Fault(
        "rows of a step tried in other weights than its own",
        "kdcore/training/non_finite.py",
        "with trainer.accelerator.no_sync(trainer.wrapped), trainer.working_weights():",
        "with trainer.accelerator.no_sync(trainer.wrapped):",
        "fake_cuda/test_refusals.py::"
        "test_a_step_that_is_not_finite_with_bf16_weights_and_cuda_graphs",
    ),
    Fault(
        "graphs kept when memory is short",
        "kdcore/training/micro_batch.py",
        "run.language_model.replayed.forget()",
        "pass",
        "unit/training/test_micro_batch_oom.py",
    ),
]
