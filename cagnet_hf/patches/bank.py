"""From label maps to a bank of category patches: fit the PixelCNN, sample, keep, and find it all again on disk."""

import copy
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from ..files import write_whole
from .layouts import NO_CLASS, SAMPLING_RULES, accept_patches, collect_patches, fill_ignored, swap_in_unseen
from .pixel_cnn import PatchPixelCNN, PatchPixelCNNConfig, RasterNetwork, log_likelihood

BANK_FILE, REPORT_FILE = "patches.safetensors", "patches.json"


@dataclass(frozen=True)
class PatchFit:
    """How a PixelCNN is fitted and its bank made.

    Attributes:
        epochs: Passes over the patches; the epoch with the best held-out likelihood is kept.
        learning_rate: Of Adam.
        batch_size: Patches of a step.
        held_out: Share of the patches that the epoch is chosen on: the last ones, so they are of other label maps.
        max_patches: Patches to learn from at most: the first ones, so the label maps should come in random order.
        unseen_share: Share of the training patches in which an unseen class takes the place of a seen one (see
            `swap_in_unseen`). 0 is the published procedure.
        bank_size: Kept patches.
        seed: Of weights, order, dropout and sampling.
    """

    epochs: int = 10
    learning_rate: float = 1e-3
    batch_size: int = 256
    held_out: float = 0.1
    max_patches: int = 200_000
    unseen_share: float = 0.5
    bank_size: int = 4096
    seed: int = 0

    def num_held_out(self, num_patches: int) -> int:
        return round(self.held_out * num_patches)


def fit_pixel_cnn(
    patches: torch.Tensor,
    config: PatchPixelCNNConfig,
    class_embeddings: torch.Tensor,
    fit: PatchFit,
    *,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> tuple[PatchPixelCNN, dict]:
    """Fit a PixelCNN to patches, choosing the epoch on held-out ones.

    Args:
        patches: `(M, k, k)` from `collect_patches`.
        class_embeddings: `(N, E)` in model order.

    Returns:
        The model in evaluation mode, and a report: numbers of patches, nats per held-out pixel after each epoch, the
        epoch kept, and `unigram_nats`, what knowing nothing but the frequencies of classes would give.

    Raises:
        ValueError: Too few patches to hold some out; a label that is unseen or no class; embeddings of another shape.
    """
    _check(patches, config, class_embeddings)
    num_held_out = fit.num_held_out(len(patches))
    if not 0 < num_held_out < len(patches):
        raise ValueError(
            f"{len(patches)} patches with held_out={fit.held_out} leave {num_held_out} to choose the epoch on: "
            "give more label maps or another share"
        )
    device = torch.device(device)
    inputs, labels = (part.to(device) for part in fill_ignored(patches))
    held_out = inputs[-num_held_out:], labels[-num_held_out:]
    train = inputs[:-num_held_out], labels[:-num_held_out]
    report = {
        "train_patches": len(train[0]),
        "held_out_patches": num_held_out,
        "unigram_nats": _unigram_nats(train[1], held_out[1], config),
        "held_out_nats": [],
    }
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(fit.seed)
        model = PatchPixelCNN(config)
        model.class_embeddings.copy_(class_embeddings)
        model.to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=fit.learning_rate)
        best = None
        for _ in (epochs := tqdm(range(fit.epochs), desc="patch layouts", unit="epoch", disable=not progress)):
            model.train()
            for chosen in torch.randperm(len(train[0])).to(device).split(fit.batch_size):
                batch = train[0][chosen].long(), train[1][chosen].long()
                if fit.unseen_share:
                    batch = swap_in_unseen(*batch, config.unseen_ids, fit.unseen_share)
                loss = model(*batch).loss
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            nats = held_out_nats(model, *held_out)
            if best is None or nats < min(report["held_out_nats"]):
                best = copy.deepcopy(model.state_dict())
            report["held_out_nats"].append(nats)
            epochs.set_postfix(held_out=f"{nats:.3f}", unigram=f"{report['unigram_nats']:.3f}")
    model.load_state_dict(best)
    report["kept_epoch"] = 1 + report["held_out_nats"].index(min(report["held_out_nats"]))
    return model.eval(), report


def _check(patches, config, class_embeddings):
    expected = (config.num_classes, config.embedding_size)
    if tuple(class_embeddings.shape) != expected:
        raise ValueError(
            f"class_embeddings have the shape {tuple(class_embeddings.shape)}, the network needs {expected}"
        )
    for label in patches[patches != NO_CLASS].unique().tolist():
        if label in config.unseen_ids:
            raise ValueError(f"the patches show class {label}, which is unseen: hide it in the label maps")
        if label >= config.num_classes:
            raise ValueError(f"the patches hold label {label}, but there are {config.num_classes} classes")


@torch.no_grad()
def held_out_nats(model: PatchPixelCNN, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Nats per counted pixel of filled patches and their labels `(M, k, k)`; leaves the model in evaluation mode."""
    model.eval()
    total, count = 0.0, 0
    for some_inputs, some_labels in zip(inputs.split(2048), labels.split(2048), strict=True):
        logits = model(some_inputs.long()).logits
        log_probability, counted = log_likelihood(logits, some_labels.long())
        total, count = total - log_probability.sum().item(), count + int(counted.sum())
    return total / max(count, 1)


def _unigram_nats(train_labels, labels, config) -> float:
    """Nats per counted pixel under the frequencies of the classes in training, each one seen once more."""
    frequencies = torch.bincount(train_labels.flatten(), minlength=256)[: config.num_classes] + 1
    log_frequencies = (frequencies / frequencies.sum()).log()
    side = config.patch_size
    logits = log_frequencies[None, :, None, None].expand(len(labels), -1, side, side)
    log_probability, counted = log_likelihood(logits, labels.long())
    return -log_probability.sum().item() / max(int(counted.sum()), 1)


def make_patch_bank(
    model: PatchPixelCNN,
    count: int,
    seed: int,
    *,
    batch_size: int = 8192,
    max_drawn: int | None = None,
    progress: bool = False,
) -> tuple[torch.Tensor, float]:
    """Sample patches that begin with an unseen class drawn uniformly, and keep those that `accept_patches` takes.

    Args:
        max_drawn: Patches to draw before giving up; 1000 for each one to keep by default.

    Returns:
        `(count, k, k)` uint8, on the model's device, and the share of drawn patches that was accepted.

    Raises:
        ValueError: The model's configuration names no unseen class, or too few patches are accepted.
    """
    config, device = model.config, model.device
    if not config.unseen_ids:
        raise ValueError("the configuration's unseen_ids are empty: patches are sampled for unseen classes")
    rules = SAMPLING_RULES[config.patch_size]
    generator = torch.Generator(device).manual_seed(seed)
    network, unseen = RasterNetwork(model), torch.tensor(config.unseen_ids, device=device)
    kept, num_kept, drawn, limit = [], 0, 0, max_drawn or 1000 * count
    with tqdm(total=count, desc="patch bank", unit="patch", disable=not progress) as bar:
        while num_kept < count:
            if drawn >= limit:
                raise ValueError(
                    f"only {num_kept} of {drawn} sampled patches hold {rules.min_unseen} unseen pixels or more and at "
                    f"most {rules.max_classes} classes, and {count} are wanted: raise unseen_share or lower bank_size"
                )
            first = unseen[torch.randint(len(unseen), (batch_size,), generator=generator, device=device)]
            patches = network.sample(first, rules.start, generator=generator)
            kept.append(patches[accept_patches(patches, config.unseen_ids)].to(torch.uint8))
            num_kept, drawn = num_kept + len(kept[-1]), drawn + batch_size
            bar.update(len(kept[-1]))
    return torch.cat(kept)[:count], num_kept / drawn


def open_patch_bank(
    folder: str | Path,
    label_maps: Iterable,
    config: PatchPixelCNNConfig,
    class_embeddings: torch.Tensor,
    fit: PatchFit,
    *,
    ignore_index: int = NO_CLASS,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> tuple[torch.Tensor, dict]:
    """The bank in `folder`; fitted, sampled and written there, whole or not at all, when there is none.

    The folder holds the model (`PatchPixelCNN.from_pretrained`), `patches.safetensors` and `patches.json`. A process
    that shares the folder with others opens it after the first one has written it.

    Args:
        label_maps: Training label maps `(h, w)` at feature resolution, model order, unseen classes hidden. Read only
            when the bank is made.
        ignore_index: What hidden and unlabelled pixels hold in the label maps.

    Returns:
        `(bank_size, k, k)` uint8 patches on `device`, and the report of `fit_pixel_cnn` with the acceptance rate.

    Raises:
        ValueError: The folder's bank was made from other settings or class embeddings.
    """
    folder, settings = Path(folder), _settings(config, fit)
    if not folder.is_dir():
        label_maps = tqdm(label_maps, desc="label maps", unit="map", disable=not progress)
        patches = collect_patches(label_maps, config.patch_size, fit.max_patches, ignore_index=ignore_index)
        model, report = fit_pixel_cnn(patches, config, class_embeddings, fit, device=device, progress=progress)
        bank, report["acceptance_rate"] = make_patch_bank(model, fit.bank_size, fit.seed, progress=progress)

        def write(aside: Path) -> None:
            model.save_pretrained(aside)
            save_file({"patches": bank.cpu()}, aside / BANK_FILE)
            (aside / REPORT_FILE).write_text(json.dumps({"settings": settings, "report": report}, indent=2))

        write_whole(folder, write)
    stored = json.loads((folder / REPORT_FILE).read_text())
    differing = sorted(key for key in settings if stored["settings"].get(key) != settings[key])
    if not torch.equal(load_file(folder / "model.safetensors")["class_embeddings"], class_embeddings.cpu().float()):
        differing.append("class_embeddings")
    if differing:
        raise ValueError(
            f"{folder}: these patches were made with other {', '.join(differing)}; "
            "remove the folder to make them again"
        )
    return load_file(folder / BANK_FILE)["patches"].to(device), stored["report"]


def _settings(config: PatchPixelCNNConfig, fit: PatchFit) -> dict:
    """What a bank depends on, the label maps apart, as JSON gives it back."""
    names = PatchPixelCNNConfig.__annotations__.keys() - {"model_type"}
    return json.loads(json.dumps({name: getattr(config, name) for name in names} | asdict(fit)))
