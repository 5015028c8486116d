"""
The target ``tflite``: one file that maps raw observations to actions and logits (or means).

Its inputs are those of the ONNX file: ``observation``, or ``observation/key`` for each key of a Dict, then ``state`` and
``action_masks`` where the student has them. Its outputs are ``action``, ``logits`` (or ``mean``) and ``next_state``.

Hidden layers are int8 with scales of 1, M and 1. For these XNNPACK, the interpreter's default on a CPU, requantizes by the
rule of :class:`~sb3_qpd.integer.IntegerLayer`. TFLite's own kernels round twice. The head has a few hundred weights, and is
computed in float32 on integers, so that its accumulators are exact too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sb3_qpd.export.files import without_paths, write_files
from sb3_qpd.export.requirements import accumulator_bound, accumulator_bounds, check_target
from sb3_qpd.export.tflite.graph import INT4_VERSION, Graph, schema
from sb3_qpd.integer import IntegerLayer, IntegerModel, ObservationPart
from sb3_qpd.version import __version__

ZERO_POINT = -128  # of activations: the grid of 0 to 255 in int8
FLOAT32_EXACT = 2**24  # float32 holds all integers up to here
MULTIPLIERS = 2.0**-32, 256.0  # XNNPACK takes them from the first to below the second
LARGEST_PRODUCT = 2.0**31  # of accumulator and multiplier: below -2^31, some kernels give 255 instead of 0
# TFLite takes denormal numbers for zero; with a larger input multiplier, a denormal observation would matter
SMALLEST_NUMBER, LARGEST_INPUT_MULTIPLIER = 2.0**-126, 2.0**96


def export_tflite(model: IntegerModel, out_dir: Path, *, channels_last: bool = False) -> list[Path]:
    """
    Write ``student.tflite``.

    :param model: a student with activations of 8 bits, weights of 8 or 4 bits, and float32 requantization
    :param out_dir: a folder that exists
    :param channels_last: the graph takes images of bytes as (batch_size, height, width, channels), the layout of TFLite's own
        convolutions
    :return: the file
    :raises ValueError: if TFLite cannot take the student, or an option does not fit it
    """
    return write_files(out_dir, {"student.tflite": make_tflite(model, channels_last=channels_last)})


def make_tflite(model: IntegerModel, *, channels_last: bool = False) -> bytes:
    """
    The student as the content of a TFLite file.

    :param model: see :func:`export_tflite`
    :param channels_last: see :func:`export_tflite`
    """
    check_target("tflite", model)
    _check_weights(model)
    if channels_last and not any(part.kind == "image" for part in model.parts):
        raise ValueError(f"channels_last is for images, this student takes observations of shape {model.observation_shape}")
    policy = _Policy(model, channels_last)
    return policy.graph.serialize(policy.build(), {"sb3_qpd": __version__, **without_paths(model.metadata)})


def _check_weights(model: IntegerModel) -> None:
    """Refuse multipliers and accumulators that TFLite cannot take; they are known after training only."""
    instead = "Take the target onnx, c or numpy"
    for i, layer in enumerate(model.layers[:-1]):
        if layer.multiplier.min() < MULTIPLIERS[0] or layer.multiplier.max() >= MULTIPLIERS[1]:
            least, most = layer.multiplier.min(), layer.multiplier.max()
            raise ValueError(
                f"XNNPACK takes multipliers from 2^-32 to below 256, layer {i} has {least:.3g} to {most:.3g}. {instead}"
            )
        if (product := (accumulator_bounds(layer) * layer.multiplier.astype(np.float64)).max()) >= LARGEST_PRODUCT:
            raise ValueError(
                "XNNPACK takes products of accumulator and multiplier below 2^31, "
                f"layer {i} could reach {product:.3g}. {instead}"
            )
    if (bound := accumulator_bound(model.layers[-1])) > FLOAT32_EXACT:
        raise ValueError(f"The head's accumulators could reach {bound}, which float32 does not hold exactly. {instead}")
    _refuse_denormals(model, instead)


def _refuse_denormals(model: IntegerModel, instead: str) -> None:
    numbers = {name: getattr(model, name) for name in ("input_multiplier", "action_low", "action_high")}
    for name, values in {**numbers, "the head's multiplier": model.layers[-1].multiplier}.items():
        sizes = np.abs(np.zeros(1) if values is None else values)
        if ((sizes > 0) & (sizes < SMALLEST_NUMBER)).any():
            raise ValueError(f"TFLite takes denormal numbers for zero, {name} holds {sizes[sizes > 0].min():.3g}. {instead}")
    if model.input_multiplier is not None and (most := np.abs(model.input_multiplier).max()) > LARGEST_INPUT_MULTIPLIER:
        raise ValueError(f"TFLite takes input multipliers up to 2^96, this model has {most:.3g}. {instead}")


class _Policy:
    """
    The graph of a student.

    :param model: the student
    :param channels_last: see :func:`export_tflite`
    """

    def __init__(self, model: IntegerModel, channels_last: bool) -> None:
        self.graph = Graph()
        self._model, self._channels_last = model, channels_last
        self._state: int | None = None
        self._newest = 0  # the newest observation on the grid, of a student with a memory

    def build(self) -> list[int]:
        """Add all operators, and return the tensors that the graph returns."""
        model = self._model
        raw = {part.key: self._observation(part) for part in model.parts}
        if model.history > 1:
            n_features = sum(part.n_features for part in model.parts) + model.n_remembered
            self._state = self.graph.input("state", np.int8, (model.history - 1, n_features), scale=1)
        n = sum(model.action_nvec)
        masks = self.graph.input("action_masks", np.bool_, (n,)) if model.uses_masks else None
        features, used, start = list[int](), 0, 0
        for number, (parts, n_layers) in enumerate(zip(model.trunks, model.branches, strict=True)):
            x, used = self._input_grid(parts, raw, used, f"input_grid{number or ''}")
            for i in range(start, start + n_layers):
                x = self._layer(x, model.layers[i], i)
            start += n_layers
            features.append(x)
        acc, outputs = self._head(features)
        action = self._box_action(outputs) if model.is_box else self._discrete_action(acc, masks)
        return [action, outputs, *([] if self._state is None else [self._next_state(action)])]

    # -- observations ------------------------------------------------------------------------------------------------------

    def _observation(self, part: ObservationPart) -> int:
        """The input of a part, as the caller gives it."""
        name = "observation" if part.key is None else f"observation/{part.key}"
        if part.kind == "one_hot":
            return self.graph.input(name, np.int64, part.shape)
        if part.kind != "image":
            return self.graph.input(name, np.float32, part.shape)
        channels, *sides = part.shape
        return self.graph.input(name, np.uint8, (*sides, channels) if self._channels_last else part.shape, scale=1)

    def _input_grid(
        self, parts: tuple[ObservationPart, ...], raw: dict[str | None, int], used: int, name: str
    ) -> tuple[int, int]:
        """
        Observations on the input grid of a trunk, in int8.

        :param parts: parts of the observation that the trunk takes
        :param raw: input of each part, by its key
        :param used: number of multipliers of the trunks before
        :param name: name of the grid
        :return: the grid, and the number of multipliers of the trunks up to this one
        """
        graph, part = self.graph, parts[0]
        if part.is_image:
            x = raw[part.key]
            x = x if part.kind == "image" and self._channels_last else self._images_with_channels_last(x)
            if part.kind == "image":
                out = graph.tensor(name, np.int8, graph.shape(x), 1, ZERO_POINT)
                return graph.operator("QUANTIZE", [x], out, schema.QuantizeOptionsT()), used
            return self._to_grid(x, slice(used, used + 1), name), used + 1
        vectors = [self._numbers(raw[part.key], part) for part in parts]
        n = sum(graph.shape(x)[0] for x in vectors)
        if self._state is None:
            return self._to_grid(graph.concatenate(vectors), slice(used, used + n), name), used + n
        self._newest = self._to_grid(graph.concatenate(vectors), slice(used, used + n), "newest")
        before = graph.reshape(self._state, (int(np.prod(graph.shape(self._state))),))
        return graph.concatenate([before, self._newest], name), used + n

    def _images_with_channels_last(self, x: int) -> int:
        graph = self.graph
        channels, *sides = graph.shape(x)
        name = f"transposed{x}"
        order = graph.constant(f"{name}_order", np.array([0, 2, 3, 1], np.int32))
        is_bytes = graph.tensors[x].type == schema.TensorType.UINT8
        out = graph.tensor(name, np.uint8 if is_bytes else np.float32, (*sides, channels), 1 if is_bytes else None)
        return graph.operator("TRANSPOSE", [x, order], out, schema.TransposeOptionsT())

    def _numbers(self, x: int, part: ObservationPart) -> int:
        """A part as a vector of float32. An index becomes zeros and a one; one that is no category becomes zeros alone."""
        x = self.graph.reshape(x, (int(np.prod(part.shape)),))
        return x if part.kind == "vector" else self._one_hot(x, part.nvec, f"one_hot{x}")

    def _one_hot(self, x: int, nvec: tuple[int, ...], name: str) -> int:
        """Indices in int64, each as zeros and a one."""
        graph, n = self.graph, sum(nvec)
        numbers = graph.constant(f"{name}_numbers", np.repeat(np.arange(len(nvec), dtype=np.int32), nvec))
        options = schema.GatherOptionsT()
        options.axis = 1
        repeated = graph.operator("GATHER", [x, numbers], graph.tensor(f"{name}_index", np.int64, (n,)), options)
        categories = graph.constant(f"{name}_category", np.concatenate([np.arange(size, dtype=np.int64) for size in nvec]))
        is_category = graph.tensor(f"{name}_is_category", np.bool_, (n,))
        x = graph.operator("EQUAL", [repeated, categories], is_category, schema.EqualOptionsT())
        return graph.operator("CAST", [x], graph.tensor(name, np.float32, (n,)), schema.CastOptionsT())

    def _to_grid(self, x: int, numbers: slice, name: str) -> int:
        """clamp(round(x m + a), -128, 127) in int8."""
        graph, model = self.graph, self._model
        assert model.input_multiplier is not None and model.input_offset is not None
        shape = graph.shape(x)
        multiplier = graph.constant(f"{name}_multiplier", np.ascontiguousarray(model.input_multiplier[numbers]))
        offset = graph.constant(f"{name}_offset", np.ascontiguousarray(model.input_offset[numbers]))
        x = graph.operator("MUL", [x, multiplier], graph.tensor(f"{name}_scaled", np.float32, shape), schema.MulOptionsT())
        x = graph.operator("ADD", [x, offset], graph.tensor(f"{name}_shifted", np.float32, shape), schema.AddOptionsT())
        # ROUND rounds half to even, QUANTIZE may not
        x = graph.operator("ROUND", [x], graph.tensor(f"{name}_rounded", np.float32, shape))
        return graph.operator("QUANTIZE", [x], graph.tensor(name, np.int8, shape, 1, 0), schema.QuantizeOptionsT())

    def _next_state(self, action: int) -> int:
        """The state without its oldest observation, and with the newest one."""
        graph, model = self.graph, self._model
        assert self._state is not None
        row = [self._newest, *([self._action_grid(action)] if model.history_actions else [])]
        newest = graph.concatenate(row)
        newest = graph.reshape(newest, (1, *graph.shape(newest)))
        kept = [graph.rows(self._state, 1, model.history - 2)] if model.history > 2 else []
        return graph.concatenate([*kept, newest], "next_state")

    def _action_grid(self, action: int) -> int:
        """The action on the input grid."""
        graph, model = self.graph, self._model
        n = model.n_remembered
        if model.is_box:
            x = graph.reshape(action, (n,))
        elif model.n_bits:
            x = graph.operator(
                "CAST", [graph.reshape(action, (n,))], graph.tensor("bits", np.float32, (n,)), schema.CastOptionsT()
            )
        else:
            x = self._one_hot(graph.reshape(action, (len(model.action_nvec),)), model.action_nvec, "action_one_hot")
        assert model.input_multiplier is not None
        return self._to_grid(x, slice(len(model.input_multiplier) - n, None), "action_grid")

    # -- layers ------------------------------------------------------------------------------------------------------------

    def _layer(self, x: int, layer: IntegerLayer, i: int) -> int:
        """A convolution or fully connected layer with requantization, int8 to int8. The lower clamp is the ReLU."""
        graph = self.graph
        name = "CONV_2D" if layer.is_conv else "FULLY_CONNECTED"
        # XNNPACK has no convolution with packed weights, leaves rows of an odd number of them to TFLite's own kernels, and
        # computes with 16 times the accumulators
        is_packed = layer.weight_bits == 4 and not layer.is_conv and layer.weight.shape[1] % 2 == 0
        is_packed = is_packed and 16 * accumulator_bound(layer) < 2**31
        if layer.is_conv:
            weight = layer.weight.transpose(0, 2, 3, 1)
            options = schema.Conv2DOptionsT()
            options.padding, options.strideH, options.strideW = schema.Padding.VALID, layer.stride, layer.stride
            height, width = ((side - weight.shape[1]) // layer.stride + 1 for side in graph.shape(x)[:2])
            shape: tuple[int, ...] = (height, width, len(weight))
        else:
            weight, x = self._weight_of_flat(layer.weight, x), self._flat(x)
            options, shape = schema.FullyConnectedOptionsT(), (len(weight),)
        inputs = [
            x,
            graph.constant(f"weight{i}", np.ascontiguousarray(weight), layer.multiplier, 4 if is_packed else 8),
            graph.constant(f"bias{i}", layer.bias.astype(np.int32), layer.multiplier),
        ]
        out = graph.tensor(f"layer{i}", np.int8, shape, 1, ZERO_POINT)
        return graph.operator(name, inputs, out, options, INT4_VERSION if is_packed else None)

    def _head(self, features: list[int]) -> tuple[int, int]:
        """The head's accumulators in float32, and the logits or the mean."""
        graph, layer = self.graph, self._model.layers[-1]
        n, ends = (len(layer.bias),), np.cumsum([int(np.prod(graph.shape(x))) for x in features])[:-1]
        columns = np.split(layer.weight, ends, axis=1)
        weight = np.concatenate([self._weight_of_flat(one, x) for one, x in zip(columns, features, strict=True)], axis=1)
        x = graph.concatenate([self._in_float(self._flat(x), f"features{i or ''}") for i, x in enumerate(features)])
        packed = graph.constant("head_weight", np.ascontiguousarray(weight), 1)
        w = graph.unscaled("head_real_weight", weight.shape)
        w = graph.operator("DEQUANTIZE", [packed], w, schema.DequantizeOptionsT())
        bias = graph.constant("head_bias", layer.bias.astype(np.float32))
        acc = graph.tensor("accumulators", np.float32, n)
        graph.operator("FULLY_CONNECTED", [x, w, bias], acc, schema.FullyConnectedOptionsT(), 1)
        outputs = graph.tensor("mean" if self._model.is_box else "logits", np.float32, n)
        graph.operator("MUL", [acc, graph.constant("unit", layer.multiplier)], outputs, schema.MulOptionsT())
        return acc, outputs

    def _in_float(self, x: int, name: str) -> int:
        return self.graph.operator(
            "DEQUANTIZE", [x], self.graph.tensor(name, np.float32, self.graph.shape(x)), schema.DequantizeOptionsT()
        )

    def _flat(self, x: int) -> int:
        return self.graph.reshape(x, (int(np.prod(self.graph.shape(x))),))

    def _weight_of_flat(self, weight: np.ndarray, x: int) -> np.ndarray:
        """Weights of a fully connected layer for an input that is flattened channels last."""
        shape = self.graph.shape(x)
        if len(shape) != 3:
            return weight
        height, width, channels = shape
        return weight.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(len(weight), -1)

    # -- actions -----------------------------------------------------------------------------------------------------------

    def _box_action(self, mean: int) -> int:
        graph, model, x = self.graph, self._model, mean
        for name, bound in (("MAXIMUM", "action_low"), ("MINIMUM", "action_high")):
            limit = graph.constant(bound, np.asarray(getattr(model, bound), np.float32).reshape(-1))
            out = graph.tensor(f"within_{bound}", np.float32, graph.shape(mean))
            x = graph.operator(name, [x, limit], out, schema.MaximumMinimumOptionsT())
        return graph.reshape(x, model.action_shape, "action")

    def _discrete_action(self, acc: int, masks: int | None) -> int:
        """For each index the category with the largest accumulator, of those that are allowed; the first of equal ones."""
        graph, model = self.graph, self._model
        n = len(model.action_nvec)
        scores = self._scores_of_bits(acc) if model.n_bits else acc
        if masks is not None:
            lowest = graph.constant("lowest", np.array(np.finfo(np.float32).min))
            allowed = graph.tensor("allowed", np.float32, graph.shape(scores))
            scores = graph.operator("SELECT_V2", [masks, scores, lowest], allowed, schema.SelectV2OptionsT())
        if model.n_bits:
            best = self._largest(graph.reshape(scores, (n, 2)), 2, "bits_of_action", (n,))
            return graph.reshape(best, model.action_shape, "action")
        if not model.action_shape:
            return self._largest(scores, 1, "action", ())
        starts = np.cumsum((0, *model.action_nvec[:-1]))
        parts = [graph.rows(scores, int(start), size) for start, size in zip(starts, model.action_nvec, strict=True)]
        indices = [graph.reshape(self._largest(one, 1, f"index{i}", ()), (1,)) for i, one in enumerate(parts)]
        return graph.reshape(graph.concatenate(indices), model.action_shape, "action")

    def _scores_of_bits(self, acc: int) -> int:
        """The logit of 0 is 0, that of 1 is the output: for one bit after the other."""
        graph, (n,) = self.graph, self.graph.shape(acc)
        zeros = graph.operator("ZEROS_LIKE", [acc], graph.tensor("zeros", np.float32, (n,)), schema.ZerosLikeOptionsT())
        options = schema.PackOptionsT()
        options.valuesCount, options.axis = 2, 2
        x = graph.operator("PACK", [zeros, acc], graph.tensor("pairs", np.float32, (n, 2)), options)
        return graph.reshape(x, (2 * n,))

    def _largest(self, x: int, axis: int, name: str, shape: tuple[int, ...]) -> int:
        options = schema.ArgMaxOptionsT()
        options.outputType = schema.TensorType.INT64
        inputs = [x, self.graph.constant(f"{name}_axis", np.array(axis, np.int32))]
        return self.graph.operator("ARG_MAX", inputs, self.graph.tensor(name, np.int64, shape), options)
