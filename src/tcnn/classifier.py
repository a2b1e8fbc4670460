"""A network for other classes: the same network with a new classifier."""

from __future__ import annotations

from torch import nn

from tcnn import sources, surgery
from tcnn.errors import TCNNError
from tcnn.layers import gpsa_layers


def with_new_classifier(model: nn.Module, num_classes: int) -> tuple[nn.Module, list[str]]:
    """A new network with `num_classes` outputs, and the names of the parameters that are new in it.

    It is built again as it was first, with `num_classes`, and recast where the model is. The
    classifier is what changes its shape with the number of classes; it gets random weights from
    PyTorch's current random state, and every other tensor is taken over.

    Args:
        model: a network from `load_model`, or recast from one; left as it was.
        num_classes: outputs of the new network.

    Raises:
        TCNNError: it is not known how to build the network, or nothing of it depends on
            `num_classes`.
    """
    origin = sources.origin(model)
    if origin.name is None:
        raise TCNNError(
            f"Expected to know how {type(model).__name__} is built, to build it with {num_classes} "
            "classes, but load_model did not build it: build it so yourself."
        )
    settings = {**origin.settings, "num_classes": num_classes}
    built = sources.build(origin.name, False, settings)
    other = sources.build(origin.name, False, {**settings, "num_classes": num_classes + 1})
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    new = [name for name, tensor in built.state_dict().items() if shapes[name] != tensor.shape]
    if not new:
        raise TCNNError(
            f"Expected {origin.name!r} to have another classifier for another number of classes, "
            "but nothing of it changes."
        )
    layers = {name: layer.config for name, layer in gpsa_layers(model).items()}
    if layers:
        built = surgery.replace_convolutions(built, layers)
    made = dict(built.named_modules())
    for name, module in model.named_modules():
        kind = type(module)
        if kind is not type(made.get(name)) and kind.__name__ != "DropPath":  # of a recipe
            raise TCNNError(
                f"Expected {origin.name!r} as it is built, to build it with {num_classes} classes, "
                f"but {name!r} of it was changed: build it so yourself."
            )
    state = model.state_dict()
    sources.parameters_like(built, state)
    kept = {name: tensor for name, tensor in state.items() if name not in new}
    built.load_state_dict(kept, strict=False)
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    for name, parameter in built.named_parameters():
        parameter.requires_grad_(name in new or trained[name])
    sources.set_origin(built, sources.Origin(origin.name, settings))
    return built.train(model.training), new
