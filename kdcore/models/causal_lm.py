"""A causal language model, split into trunk and head; the split is verified at loading.

Both work token by token, so a chunk of tokens is enough. The split is derived from the model's
configuration, then checked against its own logits.

All forward passes go through this module. Except in generation they set `use_cache=False`, because
with a cache, transformers lets packed documents attend to each other without any error.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from kdcore.data.batch import Packing
from kdcore.errors import RunError
from kdcore.models import attention, positions
from kdcore.models.head import logits_of, upcast
from kdcore.models.hidden_states import HiddenStates
from kdcore.models.logit_transforms import LogitTransform, allclose, verify
from kdcore.sharding.wrapping import copied, is_sharded, rest, run_of, trunk_of

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

    from kdcore.data.batch import Batch, ReplayedTrunk

_log = logging.getLogger("kdcore")


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradient; restores every module's mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def random_ids(
    model: PreTrainedModel, device: torch.device, shape: tuple[int, int] = (2, 16)
) -> Tensor:
    """Two rows of sixteen ids, always the same; leaves the random state alone."""
    embedding = cast(Tensor, model.get_input_embeddings().weight)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(len(embedding), shape, generator=generator).to(device)


class LanguageModel:
    """A model's trunk and head.

    Where the logits are neither `states @ weight.T + bias` nor a known elementwise function of that
    (an adapted or quantised head), `weight` is None and `states` are the logits themselves, which
    the log mentions.
    """

    bend: LogitTransform | None = None  # applied to the head's logits
    precision: torch.dtype | None  # autocast dtype; None: that of the weight
    replayed: ReplayedTrunk | None = None  # with train.cuda_graphs

    def __init__(self, model: PreTrainedModel, precision: torch.dtype | None = None) -> None:
        self.model, self.precision = model, precision
        self._trunk = trunk_of(model)
        self._run_trunk = run_of(model, self._trunk)
        self.sharded = is_sharded(model)  # its runs are collective calls
        self._hidden = HiddenStates(self._trunk, model.config, type(model).__name__)
        self.layer_sizes: Sequence[int] = ()  # width of each hidden state, once layers are watched
        # Some models search the ids for padding and warn, which syncs the device each time. Packed
        # rows contain pad ids and need no mask; other rows have one.
        vars(self._trunk)["warn_if_padding_and_no_attention_mask"] = _say_nothing
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._head: nn.Linear | None = None  # None: `states` are the logits
        with eval_mode(model):
            ids = random_ids(model, self.device)
            proved = type(head) is nn.Linear and verify(model, self._run_trunk, head, ids)
            if proved:
                self._head = head
                # Not its `out_features`: PEFT's copies of a tied head have them swapped.
                self.width, self.bend = len(head.weight), proved.bend
            else:
                self.width = int(model(input_ids=ids, use_cache=False).logits.shape[-1])
                _log.info(
                    "%s computes more than trunk and head: its full logits are used, "
                    "which takes more memory",
                    type(model).__name__,
                )
            self._packs = self._at_once = self._takes_positions = False
            self._prove_causal(ids)
            self._takes_positions = self._counts_from_zero(ids)
            self._switch, self._has_two_ways = None, True
            if self._takes_positions:
                found = positions.looks_at_call(self._run, self._trunk, model.config, ids)
                self._switch, self._has_two_ways = found
            self._packs = self._takes_positions and self._packs_exactly(ids)
            self.isolates = self._takes_positions and self._keeps_documents_apart(ids)
        # Sharded models run together, and processes have batches of different sizes.
        self._unproved = positions.UnprovedLengths(None if self.sharded else model.config)

    @property
    def weight(self) -> nn.Parameter | None:
        """The head's weight [rows, H]. Of a sharded model it is whole after a run of the trunk."""
        return None if self._head is None else cast(nn.Parameter, self._head.weight)

    @property
    def bias(self) -> nn.Parameter | None:
        """The head's bias [rows]."""
        return None if self._head is None else cast("nn.Parameter | None", self._head.bias)

    @property
    def device(self) -> torch.device:
        """The device of the model's inputs."""
        # Not the first parameter's, as transformers has it: offloaded layers are elsewhere.
        return cast(Tensor, self.model.get_input_embeddings().weight).device

    def copy(self) -> LanguageModel:
        """A frozen copy in evaluation mode, sharded as this is. Frozen weights may be shared."""
        return LanguageModel(copied(self.model, self.precision))

    def rest(self) -> None:
        """Of a sharded model: drop gathered weights, before its parameters are read or changed."""
        rest(self.model)

    def compile_layers(self, **options: Any) -> None:
        """Compile the trunk's layers in place. They are alike, so one compilation serves all.

        Options are those of `torch.compile`.
        """
        attention.keep_uncompiled()
        for layers in self._trunk.children():
            for layer in layers if isinstance(layers, nn.ModuleList) else ():
                layer.compile(**options)

    def watch_layers(self, layers: Sequence[int]) -> list[int]:
        """Let `layer_states` read these layers, counted from 0. Called before layers are compiled.

        Raises RunError if a layer does not exist or cannot be read.
        """
        numbers = self._hidden.numbers(layers)
        if (new := self._hidden.hook(numbers)) or not self.layer_sizes:
            ids = random_ids(self.model, self.device)
            with eval_mode(self.model):
                self.layer_sizes = self._hidden.proved(
                    new, lambda **asked: self._run_trunk(input_ids=ids, use_cache=False, **asked)
                )
        return numbers

    def layer_states(self, batch: Batch, layers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """As `states`, with the hidden states [rows * time, H] of these layers from the same pass.

        Layers are indexed as in transformers' `hidden_states`: 0 is the embeddings, -1 the output
        of the final norm.
        """
        watched = self.watch_layers(layers) if layers else ()
        self._prove_lengths(batch)
        with self._hidden.keeping(watched):
            states, *kept = self._states(batch)
        return states, kept

    def states(self, batch: Batch) -> Tensor:
        """The trunk's last hidden states [rows * time, H]; gradient by the caller's grad mode."""
        self._prove_lengths(batch)
        found = None if self.replayed is None else self.replayed.states(batch, self._last)
        return self._last(batch) if found is None else found

    def _last(self, batch: Batch) -> Tensor:
        return self._states(batch)[0]

    def _states(self, batch: Batch) -> list[Tensor]:
        """The same, together with the layers' states kept during the pass."""
        packs = self._packs and batch.packing is not None
        if not (packs or self.isolates) and batch.attention_mask is None:
            self._refuse_packed(batch)
        if self._switch is not None and batch.packing is not None:
            self.check_length(batch.packing.longest)
            if batch.input_ids.shape[1] > self._switch:
                ids, places = batch.input_ids, batch.position_ids
                some = positions.apart(batch.packing, self._switch) if packs else []
                if some:  # the pieces on either side of the switch run in separate calls
                    return positions.summed([self._runs(ids, places, None, each) for each in some])
                return positions.joined_alone(self._runs, ids, places, batch.packing)
        runs = self._runs(batch.input_ids, batch.position_ids, batch.attention_mask, batch.packing)
        return [each.flatten(0, 1) for each in runs]

    def check_length(self, length: int) -> None:
        """Raise RunError for pieces whose positions would depend on the rest of the batch."""
        if not self._has_two_ways and self._switch is not None and length > self._switch:
            raise RunError(
                f"{type(self.model).__name__} has other positions for each length beyond "
                f"{self._switch}, so what it computes would depend on a row's neighbours; type "
                f"--set data.block={self._switch}"
            )

    def logits(self, states: Tensor) -> Tensor:
        """Float32 logits [n, width] of chosen states [n, H], also with half-precision weights."""
        return self.head()(states)

    def head(self, device: torch.device | None = None) -> Callable[[Tensor], Tensor]:
        """`logits` for many calls: casts the weight to `precision` once.

        With `device`, the weight is copied there, for states on that device.
        """
        weight = self.computed_weight()
        bias: Tensor | None = self.bias
        if weight is None:
            return upcast
        if device is not None:
            weight, bias = weight.to(device), None if bias is None else bias.to(device)
        bend = self.bend
        if bend is None:
            return lambda states: logits_of(states, weight, bias)
        return lambda states: bend(logits_of(states, weight, bias))

    def computed_weight(self) -> Tensor | None:
        """The head's weight in the dtype that the trunk computes in."""
        if self.weight is None or self.precision is None:
            return self.weight
        return self.weight.detach().to(self.precision)

    def next_states(
        self, input_ids: Tensor, position_ids: Tensor, mask: Tensor, cache: Cache | None
    ) -> Tensor:
        """The trunk's states on rows of one document each, for generation.

        With a key-value cache, which is extended by these tokens, those of the last position [rows,
        H]; otherwise of all [rows, time, H]. `mask` includes the cached tokens.
        """
        arguments: dict[str, Any] = {"attention_mask": mask, "use_cache": cache is not None}
        if cache is not None:
            arguments["past_key_values"] = cache
        if self._takes_positions:
            arguments["position_ids"] = position_ids
        run = self.model if self._head is None else self._run_trunk
        out = run(input_ids=input_ids, **arguments)
        states: Tensor = out.logits if self._head is None else out[0]
        return states if cache is None else states[:, -1]

    def _run(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        mask: Tensor | None,
        packing: Packing | None = None,
    ) -> Tensor:
        return self._runs(input_ids, position_ids, mask, packing)[0]

    def _runs(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        mask: Tensor | None,
        packing: Packing | None = None,
    ) -> list[Tensor]:
        """The trunk's states [rows, time, H], then those kept of its layers."""
        shape = input_ids.shape
        kernel = getattr(self.model.config, "_attn_implementation", None) or ""
        if mask is None and "flash" in kernel:
            # Flash attention looks for restarting positions only in batches of one row.
            input_ids, position_ids = input_ids.reshape(1, -1), position_ids.reshape(1, -1)
        arguments: dict[str, Any] = {"attention_mask": mask, "use_cache": False}
        if packing is not None and self._packs:
            arguments |= attention.arguments(
                packing, shape[0], input_ids.device, at_once=self._at_once
            )
            if not packing.is_whole(shape[0]):
                input_ids, position_ids = _real(input_ids, packing), _real(position_ids, packing)
        if self._takes_positions:
            arguments["position_ids"] = position_ids
        run = self.model if self._head is None else self._run_trunk
        out = run(input_ids=input_ids, **arguments)
        found = [out.logits if self._head is None else out[0], *self._hidden.take()]
        if packing is not None and self._packs and packing.real is not None:
            real = packing.real
            empty = [states.new_zeros(shape.numel(), states.shape[-1]) for states in found]
            pairs = zip(empty, found, strict=True)
            found = [joined.index_copy(0, real, states[0]) for joined, states in pairs]
        return [states.reshape(*shape, states.shape[-1]) for states in found]

    def _prove_causal(self, ids: Tensor) -> None:
        """Raise RunError if later tokens change earlier states."""
        half, positions = ids.shape[1] // 2, torch.arange(ids.shape[1], device=ids.device)
        other = torch.cat([ids[:, :half], ids[:, half:].flip(0)], dim=1)
        seen = [self._run(either, positions, None)[:, :half] for either in (ids, other)]
        if not allclose(*seen, times=10):
            raise RunError(
                f"{type(self.model).__name__} is not causal: its output at a token changes with "
                "the tokens after it, so it would see what it has to predict. An encoder is causal "
                "with is_decoder = true in its config"
            )

    def _counts_from_zero(self, ids: Tensor) -> bool:
        """Whether the trunk takes positions, and its defaults start at 0."""
        if "position_ids" not in inspect.signature(self._trunk.forward).parameters:
            return False
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        own = self._run(ids, positions, None)
        self._takes_positions = True  # for the trial
        return allclose(own, self._run(ids, positions, None))

    def _packs_exactly(self, ids: Tensor) -> bool:
        """Whether packed pieces have the same states as each alone."""
        half = ids.shape[1] // 2
        positions = torch.arange(half, device=ids.device).repeat(2).expand_as(ids)
        alone = self._run(ids[:, half:], positions[:, :half], None)
        if not attention.install(self.model, lambda: self._run(ids, positions, None)):
            return False
        starts = torch.arange(0, ids.numel() + 1, half, dtype=torch.int32, device=ids.device)
        pieces = 2 * len(ids)
        packed = Packing(None, (half,) * pieces, starts, half)
        whole = replace(packed, lengths=packed.lengths[::2], starts=starts[: len(ids) + 1])
        self._packs = True  # for the trial
        try:
            found = self._run(ids, positions, None, packed)[:, half:]
            rows = self._run(ids[:, half:], positions[:, :half], None, whole)
        except (TypeError, RuntimeError):
            found = rows = ids[:, half:, None]
        if allclose(found, alone) and allclose(rows, alone):
            with self._autocast():
                self._at_once = attention.is_exact_at_once(
                    self.model, lambda: self._run(ids, positions, None, packed)
                )
            return True
        attention.uninstall(self.model)
        return False

    def _prove_lengths(self, batch: Batch) -> None:
        """Prove packing again for a batch beyond one of the config's lengths.

        Attention may change at these. The proof is one pass of random ids.
        """
        pieces = self._unproved.due(batch.input_ids.numel(), batch.packing)
        if not pieces or batch.packing is None or not (self._packs or self.isolates):
            return
        longest = batch.packing.longest
        with eval_mode(self.model), torch.autocast(self.device.type, enabled=False):
            ids = random_ids(self.model, self.device, (1, pieces * longest))
            places = torch.arange(longest, device=self.device)
            row, alone = (ids, places.repeat(pieces)[None]), (ids[:, -longest:], places[None])
            packing = positions.evenly(ids, longest)
            exact = attention.is_exact_at(
                self.model,
                lambda together: (
                    self._run(*row, None, packing) if together else self._run(*alone, None)
                ),
                longest,
            )
        if not exact:
            if self._packs:
                attention.uninstall(self.model)
            self._packs = self.isolates = False

    def _autocast(self) -> AbstractContextManager[object]:
        """Autocast as in training."""
        if self.precision is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)

    def _keeps_documents_apart(self, ids: Tensor) -> bool:
        """Whether the second document of a packed row is independent of the first."""
        half = ids.shape[1] // 2
        positions = torch.arange(half, device=ids.device).repeat(2).expand_as(ids)
        other = torch.cat([ids[:, half:], ids[:, half:]], dim=1)
        seen = [self._run(either, positions, None)[:, half:] for either in (ids, other)]
        return allclose(*seen)

    def _refuse_packed(self, batch: Batch) -> None:
        # Syncs the device, but only for models that cannot take packed rows anyway.
        # Padding restarts positions too, at the right end, where no token sees it.
        positions, real = batch.position_ids, batch.document[:, 1:] >= 0
        if bool(((positions[:, 1:] <= positions[:, :-1]) & real).any()):
            raise RunError(
                f"{type(self.model).__name__} attends across packed documents; "
                'use rows = "one" or "chunk" in [data]'
            )


def _say_nothing(*_: Any) -> None:
    pass


def _real(tensor: Tensor, packing: Packing) -> Tensor:
    """[rows, time] -> [1, n]: without padding."""
    flat = tensor.reshape(-1)
    return (flat if packing.real is None else flat[packing.real])[None]
