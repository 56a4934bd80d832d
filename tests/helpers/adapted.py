"""Models with an adapter that does something already, in memory and on disk."""

import torch
from kdcore_lora import Lora


def adapted(model, *, seed=0, scale=0.1, **options):
    """The model with the patch `lora`; its second matrices, which begin at zero, are drawn too."""
    torch.manual_seed(seed)
    model = Lora(**{"rank": 4} | options).apply(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale)
    return model


def save_adapter(model, folder, *, base=None, **options):
    """A folder with an adapter of the model, which names `base`; the adapted model."""
    made = adapted(model, **options).eval()
    for config in made.peft_config.values():
        config.base_model_name_or_path = None if base is None else str(base)
    made.save_pretrained(folder, save_embedding_layers=False)
    return made
