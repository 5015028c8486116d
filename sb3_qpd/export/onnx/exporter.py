"""The target ``onnx``: one file of standard operators that maps raw observations to actions and logits (or means)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from sb3_qpd.export.files import without_paths, write_files
from sb3_qpd.export.onnx.graph import MASKS, NEXT_STATE, STATE, Graph, input_name, output_name
from sb3_qpd.export.onnx.names import GODOT, check_godot, godot_names, rename, write_godot
from sb3_qpd.export.onnx.plain import PlainGraph, check_plain
from sb3_qpd.export.requirements import check_target
from sb3_qpd.integer import IntegerModel
from sb3_qpd.version import __version__

FORMS = ("operators", "qdq", "float")
OPSETS = {8: 13, 4: 21, 2: 25}  # the first with the type that holds weights of so many bits
STREAM_OPSET = 18  # the first with BitwiseAnd, for all other widths
ELEMENT_TYPES = {"image": TensorProto.UINT8, "one_hot": TensorProto.INT64}  # types of inputs; others are floats, or doubles


def export_onnx(
    model: IntegerModel,
    out_dir: Path,
    *,
    form: str = "operators",
    channels_last: bool = False,
    names: str | Mapping[str, str] | None = None,
) -> list[Path]:
    """
    Write ``student.onnx``; in the form ``"float"`` also how often it agrees with the integer model.

    :param model: a student with float32 requantization
    :param out_dir: a folder that exists
    :param form: ``"operators"`` uses QLinearConv and MatMulInteger: exact in every runtime that rounds as the standard says.
        ``"qdq"`` uses float operators between QuantizeLinear and DequantizeLinear: exact in runtimes that fuse all of them.
        ``"float"`` uses plain float32 operators of opset 13, and its outputs are the logits, or the action and the mean
    :param channels_last: the graph takes images of shape (batch_size, height, width, channels)
    :param names: other names of inputs and outputs by their usual names. Or ``"godot"``: the inputs and outputs that the
        plugin of Godot RL Agents reads
    :return: the file
    :raises ValueError: if ONNX cannot take the student, or an option does not fit it
    """
    proto = make_onnx(model, form=form, channels_last=channels_last, names=names)
    paths = write_files(out_dir, {"student.onnx": proto.SerializeToString()})
    if form != "float":
        return paths
    from sb3_qpd.export.onnx.agreement import measure_agreement

    content = json.dumps(measure_agreement(paths[0], model), indent=2) + "\n"
    return [*paths, *write_files(out_dir, {"student_onnx.json": content.encode()})]


def make_onnx(
    model: IntegerModel,
    *,
    form: str = "operators",
    channels_last: bool = False,
    names: str | Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """
    The student as an ONNX model.

    Tensors inside: ``input_grid`` (with zero point 128 for vectors), ``layer0``, ``layer1``, ..., ``accumulators``.

    A student with a memory has an input ``state`` and an output ``next_state``, int8, shape (batch_size, history - 1,
    n_features): the observations before the newest one on the input grid, each with the action that followed it where the
    student sees actions. An episode begins with zeros. In the form ``"float"`` both are float32.

    :param model: see :func:`export_onnx`
    :param form: see :func:`export_onnx`
    :param channels_last: see :func:`export_onnx`
    :param names: see :func:`export_onnx`
    """
    is_plain, is_for_godot = form == "float", names == GODOT
    _check_options(model, form, channels_last, is_for_godot)
    graph = PlainGraph() if is_plain else Graph(form == "qdq")
    acc = graph.head(graph.trunks(model, channels_last), model)
    inputs, outputs = _input_infos(model, channels_last, is_plain), _output_infos(model, is_plain)
    opset = 13 if is_plain else max(OPSETS.get(layer.weight_bits, STREAM_OPSET) for layer in model.layers)
    if is_for_godot:
        inputs, outputs = write_godot(graph, acc, model, opset)
    elif not model.is_box and not is_plain:
        graph.choose(acc, model)
    if model.history > 1:
        graph.next_state(model)
    imports = [helper.make_opsetid("", opset)]
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "policy", inputs, outputs, graph.initializers),
        opset_imports=imports,
        ir_version=helper.find_min_ir_version_for(imports),
        producer_name="sb3_qpd",
        producer_version=__version__,
    )
    if isinstance(names, str) and not is_for_godot:
        raise ValueError(f"names must be a dict or {GODOT!r}, got {names!r}")
    chosen = godot_names(model) if isinstance(names, str) else dict(names or {})
    rename(proto, chosen)
    more = {"names": json.dumps(chosen)} if chosen else {}
    if is_for_godot or (is_plain and not model.is_box):  # the engine chooses the action
        more["action_shape"] = json.dumps(model.action_shape)
    helper.set_model_props(proto, {**_properties(model, channels_last, is_plain), **more})
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _check_options(model: IntegerModel, form: str, channels_last: bool, is_for_godot: bool) -> None:
    """Refuse an unknown form, and options that do not fit the student."""
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, got {form!r}")
    check_target("onnx", model)
    if channels_last and not any(part.kind == "image" for part in model.parts):
        raise ValueError(f"channels_last is for images, this student takes observations of shape {model.observation_shape}")
    if is_for_godot:
        check_godot(model)
    if form == "float":
        check_plain(model)


def _input_infos(model: IntegerModel, channels_last: bool, is_plain: bool = False) -> list[onnx.ValueInfoProto]:
    infos = []
    for part in model.parts:
        shape = (*part.shape[1:], part.shape[0]) if channels_last and part.kind == "image" else part.shape
        number = TensorProto.FLOAT if model.origin_of(part) is None else TensorProto.DOUBLE
        kind = number if is_plain else ELEMENT_TYPES.get(part.kind, number)
        infos.append(helper.make_tensor_value_info(input_name(part), kind, ["batch", *shape]))
    if model.uses_masks and not is_plain:
        infos.append(helper.make_tensor_value_info(MASKS, TensorProto.BOOL, ["batch", sum(model.action_nvec)]))
    return [*infos, *_state_infos(model, STATE, is_plain)]


def _state_infos(model: IntegerModel, name: str, is_plain: bool) -> list[onnx.ValueInfoProto]:
    shape: list[str | int | None] = ["batch", model.history - 1, model.n_features + model.n_remembered]
    kind = TensorProto.FLOAT if is_plain else TensorProto.INT8
    return [helper.make_tensor_value_info(name, kind, shape)] if model.history > 1 else []


def _output_infos(model: IntegerModel, is_plain: bool = False) -> list[onnx.ValueInfoProto]:
    kind = TensorProto.FLOAT if model.is_box else TensorProto.INT64
    outputs = helper.make_tensor_value_info(output_name(model), TensorProto.FLOAT, ["batch", len(model.layers[-1].bias)])
    states = _state_infos(model, NEXT_STATE, is_plain)
    if is_plain and not model.is_box:  # the largest logit is found by the caller
        return [outputs, *states]
    action = helper.make_tensor_value_info("action", kind, ["batch", *model.action_shape])
    return [action, outputs, *states]


def _properties(model: IntegerModel, channels_last: bool, is_plain: bool) -> dict[str, str]:
    """``metadata_props`` of the file: metadata of the model, spaces and versions, each as a string or JSON."""
    action: dict[str, Any] = {"n": model.action_nvec[0]} if len(model.action_nvec) == 1 else {"nvec": model.action_nvec}
    if model.is_box:
        bounds = {"low": model.action_low, "high": model.action_high, "std": model.action_std}
        action = {"shape": list(model.action_shape)}
        action |= {name: [str(x) for x in value] for name, value in bounds.items() if value is not None}
    properties = {
        **without_paths(model.metadata),
        "observation_space": _observation_property(model, channels_last, is_plain),
        "action_space": action,
        "versions": {"sb3_qpd": __version__, "onnx": onnx.__version__},
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in properties.items()}


def _observation_property(model: IntegerModel, channels_last: bool, is_plain: bool) -> dict[str, Any]:
    spaces: dict[str | None, dict[str, Any]] = {}
    for part, info in zip(model.parts, _input_infos(model, channels_last, is_plain), strict=False):
        tensor = info.type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        spaces[part.key] = {"shape": [dim.dim_value for dim in tensor.shape.dim[1:]], "dtype": dtype}
        if part.nvec:
            spaces[part.key]["nvec"] = part.nvec
    return spaces.get(None) or {str(key): one for key, one in spaces.items()}
