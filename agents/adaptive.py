"""Network and agent together: from pixels to logits, with a size of its own for every image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from torch import Tensor, nn

from prance_env.checks import check_settings
from prance_env.rewards.prices import CostConditioning
from prance_env.settings import EnvSettings
from prance_env.spaces import decode_actions, observe
from supernet import GroupChoice, InferenceState, SubnetConfig, Supernet
from supernet.reading import checked_count
from supernet.runtime.choice import runs_tiles
from supernet.runtime.graphs import Recorder

from .deployed import files
from .deployed.budgets import Budget, Calibration, prices_of, spread
from .deployed.calibrate import BATCH, PRICES, calibration_of
from .deployed.card import model_card
from .deployed.convert import plain_agent
from .deployed.menu import Menu, MenuPlan, entries_of
from .deployed.networks import NetworkPolicy
from .deployed.on_device import played_on_device
from .deployed.pictures import Picture, Preprocessing, check_images, checked_names
from .deployed.prediction import Prediction, joined
from .deployed.runs import Deployed, agent_of_run, check_here
from .fitting import Interface, fitted
from .protocol import Agent, ask

Budgets = Budget | Sequence[Budget | None] | None
CALIBRATION_IMAGES, MENU_CALIBRATION_IMAGES = 1024, 256


class AdaptiveViT(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="prance-env",
    tags=["image-classification", "adaptive-inference", "vision-transformer"],
    paper_url="https://arxiv.org/abs/2407.05010",
):
    """A supernet with an agent that chooses, while an image is classified, how wide and how long it goes on.

    Nothing is cached or looked up: this is what is deployed, and it takes images that no environment has seen.

        model = AdaptiveViT.from_run("runs/agent")
        prediction = model.predict(["cat.jpg", "dog.png"])  # paths, bytes, Pillow's images or arrays, of any size
        prediction = model(images)  # (B, C, H, W) uint8, or floats that are normalised already
        prediction.logits.argmax(1), prediction.macs, [*prediction.rows()]
        model.save_pretrained("saved")  # safetensors and JSON; AdaptiveViT.from_pretrained("saved")

    A model holds no state of a call, so that threads can share it.

    Args:
        net: The supernet, frozen.
        agent: Whatever has SB3's `predict`; it is asked for deterministic actions.
        observation: What the agent is shown, a name that `prance_env.list_observations` has.
        normalize_actions: Whether the agent's actions are those of Box(-1, 1) instead of Box(0, 1).
        conditioning: Range of the prices that a cost-conditioned agent was trained for; None: one price.
        preprocessing: What `predict` does to pictures.
        names: Of the classes, by label; None: their numbers.
        calibration: What the model spends at which price.
        menu: For `menu`: a few choices for each decision; None: there is none.

    Raises:
        ValueError: If the agent is for other observations, actions or wrappers, see `agents.fitting.fitted`; or there
            are not as many names as classes.
    """

    def __new__(cls, *args: Any, **named: Any) -> AdaptiveViT:
        """Without the mixin's copy of the arguments, which may be environments: `files.write` knows what to save."""
        return object.__new__(cls)

    def __init__(
        self,
        net: Supernet,
        agent: Agent,
        observation: str = "cls",
        normalize_actions: bool = True,
        conditioning: CostConditioning | None = None,
        preprocessing: Preprocessing | None = None,
        names: Sequence[str] | None = None,
        calibration: Calibration | None = None,
        menu: MenuPlan | None = None,
    ) -> None:
        super().__init__()
        self.interface = Interface(net.config, observation, normalize_actions, conditioning)
        self.net, self.agent = net, fitted(agent, self.interface)
        self.preprocessing = Preprocessing(crop_pct=1.0) if preprocessing is None else preprocessing
        self.names, self.calibration = checked_names(names, max(net.config.num_classes, 0)), calibration
        self.full_macs = int(net.macs().item())
        self._recorder, self._menu_plan = Recorder(), menu
        self._menu: tuple[Any, ...] = ()
        self.train(net.training)

    def __getstate__(self) -> dict[str, Any]:
        """Without the menu's modules, which are views of these weights, and made again."""
        return {**vars(self), "_menu": ()}

    def _apply(self, fn: Any, recurse: bool = True) -> AdaptiveViT:
        """Of the agent only where it is changes, not its precision: it is tiny, and must choose the same."""
        super()._apply(fn, recurse=False)
        for child in self.children():
            child._apply((lambda t: t.to(fn(t).device)) if child is self.agent else fn)
        return self

    @classmethod
    def from_settings(cls, settings: EnvSettings, agent: Agent) -> AdaptiveViT:
        """The supernet of an environment, which is shared with it, and an agent for that environment.

        Args:
            settings: Of the environment that the agent was trained in, or of one with the same spaces.
            agent: The agent.

        Raises:
            ValueError: If the agent is for other observations, actions or wrappers.
            TypeError: If it is no agent, or the settings are something else.
        """
        check_settings(settings)
        return cls._of(Deployed(settings, settings.dataset_config), settings.engine().net, agent)

    @classmethod
    def from_run(
        cls,
        run: str | Path,
        checkpoint: str | None = None,
        dataset: str | dict[str, Any] | None = None,
        names: Sequence[str] | None = None,
        images: int = CALIBRATION_IMAGES,
        trust: bool = False,
    ) -> AdaptiveViT:
        """What `prance train agent` trained, with what it spends measured on validation images.

        Args:
            run: The run folder.
            checkpoint: Another supernet than that of the training, such as the one of `prance train joint`.
            dataset: Where the images lie now; None: where they lay. A dict says all of `DatasetConfig` anew.
            names: Of the classes; None: those of the training, else of the data set's folders, or numbers.
            images: Validation images to calibrate on; 0: no calibration, and no images are needed.
            trust: Whether to unpickle an agent that is there as Stable-Baselines3's zip file only.

        Raises:
            FileNotFoundError: If there is no such run, or it holds no agent.
            ValueError: If the agent cannot be saved without pickling, would have to be unpickled, or does not fit; or
                if the images would have to be fetched from the network, and `dataset` does not say so.
        """
        noted = Deployed.of_run(run, checkpoint, dataset, images > 0)
        settings = noted.settings
        interface = Interface.of(settings)
        agent = plain_agent(fitted(agent_of_run(run, trust), interface), interface)
        model = cls._of(noted, settings.network(), agent, names)
        if images:
            if dataset is None:
                check_here(settings, run)
            source = settings.engine().dataset
            index = np.linspace(0, len(source) - 1, min(images, len(source))).astype(np.int64)
            model.calibrate(source.fetch(index), source.labels[torch.from_numpy(source.shown(index))])
        return model

    @classmethod
    def _of(cls, noted: Deployed, net: Supernet, agent: Agent, names: Sequence[str] | None = None) -> AdaptiveViT:
        seen, pictures = noted.settings, Preprocessing.of(noted.dataset)
        names = noted.class_names() if names is None else names
        return cls(net, agent, seen.observation, seen.normalize_actions, seen.conditioning, pictures, names)

    # ---- classifying --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def forward(self, images: Tensor, budget: Budgets = None, from_menu: bool = False) -> Prediction:
        """Classifies images.

        Args:
            images: (B, in_chans, img_size, img_size): uint8, or floats that are normalised already.
            budget: For an agent that was trained for a range of prices: a price of computation, such as 0.05, the
                higher the less it computes; a share of the full network's MACs, "40%"; or milliseconds an image, "12ms"
                (`agents.deployed.budgets`). One for all images, or one for each; None takes the fixed price of its
                settings.
            from_menu: Whether the choices are those that `menu` makes, for batches; budgets are as of the model.

        Raises:
            ValueError: If the images do not fit, the agent needs a budget and has none, the budget is out of reach, the
                agent knows no prices, or there is no menu to choose from.
            TypeError: If the images are no tensor.
        """
        menu = self.menu if from_menu else None
        if from_menu and menu is None:
            raise ValueError("from_menu=True, but this model has no menu; call model.make_menu(images) first.")
        state, unit, patches = self._played(images, budget, menu)
        subnet = SubnetConfig.from_actions(self.net.space, unit)
        macs = self.net.macs_to_go(state)
        return Prediction(self.net.forward_head(state), subnet, macs, patches, self.full_macs, self.names)

    @torch.inference_mode()
    def forward_features(self, images: Tensor, budget: Budgets = None) -> InferenceState:
        """All blocks; `forward_head` takes the result. Arguments and errors are those of a call of the model."""
        return self._played(images, budget)[0]

    @torch.inference_mode()
    def forward_head(self, state: InferenceState) -> Tensor:
        """(B, num_classes) logits of what `forward_features` gave."""
        return self.net.forward_head(state)

    def predict(
        self, pictures: Picture | Sequence[Picture], budget: Budgets = None, batch_size: int = BATCH
    ) -> Prediction:
        """Classifies pictures of any size, cut and scaled as the data set of the training was.

        Args:
            pictures: One or several: paths, bytes of files, Pillow's images, or uint8 arrays (H, W), (H, W, C) or
                (C, H, W).
            budget: As of a call of the model.
            batch_size: So many are computed at a time.

        Raises:
            ValueError: If a picture cannot be read, or as a call of the model.
            TypeError: If something is no picture.
        """
        images = self.preprocessing(pictures, self.net.config)
        begins = range(0, len(images), checked_count(batch_size, "batch_size"))
        budgets = spread(budget, len(images), "pictures")
        return joined([self(images[b : b + batch_size], budgets[b : b + batch_size]) for b in begins])

    def _played(self, images: Tensor, budget: Budgets, menu: Menu | None = None) -> tuple[InferenceState, Tensor, Any]:
        """The state after the last group, (B, T, A) actions in [0, 1], and (B, T) patches left."""
        check_images(images)
        net, space, prefix = self.net, self.net.space, self.net.config.num_prefix_tokens
        prices, price = prices_of(budget, self.interface.conditioning, self.calibration, len(images)), None
        if prices is not None:
            assert self.interface.conditioning is not None
            price = self.interface.conditioning.observe(prices)
        device, dtype = net.pos_embed.device, net.pos_embed.dtype
        state = net.begin(images.to(device, non_blocking=True), key_mean="key_mean" in self.interface.layout)
        if menu is None and isinstance(self.agent, NetworkPolicy) and runs_tiles(net.config, device, dtype):
            return played_on_device(net, self.agent, self.interface, self.full_macs, state, price, self._recorder)
        memory, chosen, patches = None, [], []
        for group in range(space.first_decided, len(space.groups)):
            seen = observe(net, state, self.interface.observation, self.full_macs, price)
            unit, memory = self._asked(seen, memory)
            unit = unit if menu is None else menu.nearest(group - space.first_decided, unit).cpu()
            state = net.run_group(state, group, GroupChoice.from_actions(space, unit), known=True)
            chosen.append(unit)
            patches.append(state.num_tokens - prefix)
        return state, torch.stack(chosen, dim=1), np.stack(patches, axis=1)

    def _asked(self, seen: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """(B, A) actions in [0, 1] on the CPU, and what the agent wants back at the next decision."""
        normalised, size = self.interface.normalize_actions, self.net.space.action_size
        if isinstance(self.agent, NetworkPolicy):
            actions = self.agent(seen).cpu().numpy()
        else:
            # As `NetworkPolicy`: an agent, wherever it is, chooses the same whatever is autocast around the network.
            with torch.autocast(seen.device.type, enabled=False), torch.autocast("cpu", enabled=False):
                actions, memory = ask(self.agent, seen.cpu().numpy(), memory, size)
        return torch.from_numpy(decode_actions(actions, normalised)), memory

    # ---- budgets ------------------------------------------------------------------------------------------------

    def calibrate(
        self, images: Tensor, labels: Tensor | None = None, prices: int = PRICES, timed: int | None = None
    ) -> Calibration:
        """Measures what the model spends, so that budgets can be shares of the MACs or milliseconds; kept, and saved.

        Args:
            images: (N, C, H, W) like those that the model is going to see.
            labels: (N,) their classes; None: no accuracy is noted.
            prices: How many of the agent's range, evenly spaced on a logarithmic scale.
            timed: Also times so many images at a time; None: no times.
        """
        self.calibration = calibration_of(self, images, labels, prices, timed)
        return self.calibration

    # ---- one image at a time -------------------------------------------------------------------------------------

    def make_menu(self, images: Tensor, entries: int = 16, budget: Budgets = None, timed: int | None = None) -> Menu:
        """A few choices for each decision, clustered from what the policy chooses; kept, and saved.

        Args:
            images: (N, C, H, W) like those that the model is going to see.
            entries: For each decision, at most.
            budget: That the menu is for, or one for each image; None: of an agent for a range of prices, all of it.
            timed: Of an agent for a range of prices: also times so many images at a time; None: no times.

        Raises:
            ValueError: If the policy sees what a menu cannot show, is no plain network, or there are no images.
        """
        if not len(images):
            raise ValueError("There are no images to make a menu from; pass some like those that the model is to see.")
        conditioning = self.interface.conditioning
        budgets: Any = spread(budget, len(images))
        if budget is None and conditioning is not None and conditioning.fixed is None:
            # Neighbours often are of one class: every price sees images of all.
            prices = np.geomspace(conditioning.low, conditioning.high, PRICES).clip(conditioning.low, conditioning.high)
            budgets = prices[np.random.default_rng(0).integers(0, PRICES, len(images))].tolist()
        parts = [self(images[b : b + BATCH], budgets[b : b + BATCH]) for b in range(0, len(images), BATCH)]
        chosen = joined(parts).subnet.to_actions(self.net.space).numpy()
        plan, earlier = MenuPlan(entries_of(chosen, self.net.space, entries)), self._menu_plan
        try:
            self._menu_plan = plan
            if conditioning is not None:
                some = images[:: max(len(images) // MENU_CALIBRATION_IMAGES, 1)]
                spent = calibration_of(self, some, None, timed=timed, from_menu=True)
                self._menu_plan = MenuPlan(plan.entries, spent)
            return cast(Menu, self.menu)
        except BaseException:
            self._menu_plan = earlier
            raise

    @property
    def menu(self) -> Menu | None:
        """The model for one image at a time, with the choices that `make_menu` found; None before."""
        if self._menu_plan is None:
            return None
        weights = self.net.pos_embed
        # A menu has views of the weights, and by the authors' rules copies of the norms'.
        now = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.net.parameters()]
        made_for = (self._menu_plan, self.agent, weights.dtype, now)
        if not self._menu or self._menu[0] != made_for:
            policy = plain_agent(self.agent, self.interface)
            if not isinstance(policy, NetworkPolicy):
                raise ValueError(
                    f"A {type(policy).__name__} is no network, and a menu is for policies that are; export its subnet "
                    "with `prance export --subnet`, or use the model without a menu."
                )
            plan = self._menu_plan
            policy = policy.to(weights.device)
            menu = Menu(self.net, policy, self.interface, plan.entries, self.names, plan.calibration)
            self._menu = made_for, menu
        return cast(Menu, self._menu[1])

    # ---- files --------------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Writes `model.safetensors`, `config.json` and a model card with what was measured, all of them or none.

        Args:
            save_directory: Created if missing; what an earlier save has left there is replaced.
            config: Not used: the model knows its own.
            repo_id: Of the hub, if it is pushed; None: the folder's name.
            push_to_hub: Whether to push it to the hub, too.
            model_card_kwargs: Not used: the card is made of what was measured.
            **push_to_hub_kwargs: As of `push_to_hub`.

        Raises:
            FileExistsError: If the folder holds something else, such as a supernet or an export.
            ValueError: If the agent cannot be saved without pickling.
        """
        agent = plain_agent(self.agent, self.interface)
        parts = files.Parts(
            self.net, agent, self.interface, self.preprocessing, self.names, self.calibration, self._menu_plan
        )
        files.write(parts, model_card(parts), Path(save_directory))
        if push_to_hub:
            return self.push_to_hub(repo_id or Path(save_directory).name, **push_to_hub_kwargs)
        return None

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> AdaptiveViT:  # type: ignore[override]
        """Loads what `save_pretrained` wrote, in evaluation mode on the CPU.

        Args:
            name: The folder, or a name of the Hugging Face hub.
            **options: Of the hub: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`.

        Raises:
            FileNotFoundError: If there is no such folder, or it is not complete.
            ValueError: If a file is damaged or does not fit.
        """
        # Not the mixin's way, which takes any config.json for a mapping.
        path = Path(name)
        if not path.is_dir():
            if path.is_absolute() or str(name).count("/") != 1 or path.parent.is_dir():  # which is no name of the hub
                raise FileNotFoundError(
                    f"There is no folder {name}; pass one that AdaptiveViT.save_pretrained wrote, or OWNER/NAME of the "
                    "hub."
                )
            wanted = [files.WEIGHTS, files.CONFIG, files.CARD]
            path = Path(snapshot_download(str(name), allow_patterns=wanted, **options))
        parts = files.read(path)
        seen = parts.interface
        more = parts.preprocessing, parts.names, parts.calibration, parts.menu
        return cls(parts.net, parts.agent, seen.observation, seen.normalize_actions, seen.conditioning, *more)
