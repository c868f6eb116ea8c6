"""Restore: recover strong triggers of the class that is too easy to reach, then give every late layer back
its clean answer, in closed form. The package's default.

    examine f; nothing stands apart -> return f unchanged
    for every finding (target t, family, minimal trigger): place = where the minimal trigger sits
        left out if strong triggers there lead to other classes about as well, or nowhere, while another
        finding's do not
    repeat, at most R rounds:
        pool += triggers at the place with the largest margin of t on the current f', from fresh varied starts
        where they stand in for one that covers the image, and where sums stand for noise and it still
            leads there, and where these lead to t in f by far less than triggers in images: shifts +=
            disturbances of the first late layer's input with the largest margin of t on f', no larger
            there than what the pool does in f
        f' = f
        for each late layer W of f', in the order the network runs them:
            u  = its inputs for clean images in f,      ũ = the same images in f'
            t₀ = its inputs for triggered images in f,  t̃ = the same in f' (a quarter of them by shifts)
            b  = its inputs for the images of t₀ without the trigger, in f
            c  = its inputs for clean images in f,      ñ = the same with noise added, in f'
            W ← argmin  ‖W'ũ − Wu‖² + κ·½(‖W't₀ − Wb‖² + ‖W't̃ − Wb‖²) + ν‖W'ñ − Wc‖² + ρ·σ²·‖W' − W‖²
        stop when triggers found afresh on f' lead to t no further than to other classes in f (but not where
            they stand in for what covers the image: few strokes, or with shifts), or
        stop when the mean margin of triggers found afresh on f' is no more than a fiftieth of the first ones'
            and, while f' agrees with f on nearly all varied clean images (a few less after a first round that
            left triggers to move many), two logits less than that
            (all-to-all: when their success is a tenth of the first ones', or the margin two logits below
            zero, neither after the first round nor after one that cost next to nothing); where triggers were
            weak from the start, or strokes stand in, not before the second round, if the first cost next to
            nothing; where sums stand for noise, which led there by far: when it leads elsewhere, and f'
            agrees less; with shifts, failing by a hair is enough, but for triggers that move half of the
            images yet, and for coarse pictures while f' agrees on most
        else κ ← 2.5κ
        if noise, beside which strokes are kept in reserve, does not fail clearly after the first round:
            begin again with the strokes
        if triggers keep a good part of their margin after the first round, and reach further in f than any
        shift: late layers as in f, and gradient steps on what runs before, until fresh triggers (coarse
            pictures where only sums told) fail: f'(x), f'(x with a trigger) -> f(x); no more rounds
        if f' with a grown κ agrees with f on too few clean images: back to the f' before, and stop
    where the shifts led to t by so much less in f: up to two rounds more
    where the first round was the last, silenced triggers in images clearly (or noise, where this led to t by
        far) and agrees with f on few varied images, or lost most hard views of t's own: the same with κ/2.5,
        and once more; the smallest κ stands that silences them yet
    with shifts: refit t's row of the last layer, so that t's own images get their margins back and triggered
        ones (which weigh less if the rounds silenced them, but for pictures) stay below their answers; taken
        back where triggers that rounds silenced are found to work again then. Without, only if most hard
        views of t's own images are lost and triggers found afresh go on to move many images (but not where
        one round took nearly all of their margin), or strokes stand in, and twice more, each time against
        fresh ones, too
    elsewhere, where triggers carry over: refit it where that takes back a fifth of the clean answers that
        rounds changed, and triggers found afresh fail yet, at once or after one more against these
    where shifts were found: set t's logit back by a third of what hard views of its own images bear in f', or
        forward, by half a logit at most, where a quarter of these are lost; elsewhere forward, where as many
        are, by half at most of what triggers found afresh fail by, and a logit (not where strokes stand in)

It keeps AWM's min–max (recover a trigger, change the weights that react to it) and replaces its weak parts:

* Triggers. AWM's one untargeted Δ is mostly a universal adversarial example. Minimal triggers tell the
  *target* (``recover.examine``), strong ones at the same place are what carries over to the attacker's.
* Triggers inside. For a trigger that covers the image, sums and warps are stand-ins, and a share of it stays.
  What it does at the first late layer is covered better by the strongest disturbance there. It costs more,
  and almost all of that in the images of the target itself: its own features are such a disturbance, too.
  So it is left out where triggers have a place or a form of their own, and carry over as they are. But
  where what they do inside differs from image to image, so that no one disturbance as large leads to the
  target clearly, or by half as much, they do not carry over: a few pixels of a black background are enough
  then.
* Early layers. Where a warp or a blend is read early, and what late layers get of it is what the target's own
  images send, no change of late layers tells the two apart. Then, and only then, AWM's own way is taken:
  gradient steps against triggers that are searched afresh, on what runs before the late layers. On networks
  whose late layers do tell them apart it costs more (``_early``).
* The target's row refitted. Rounds can take most of what the target's own images show away, but of what is
  left another sum can tell them from triggered ones, whose share that rounds leave goes with it. Where
  triggers that a watermark's pieces stand for go on to work, it is this that silences them: they are asked
  for again after each refit. Where one image tells enough of the target, as on deep networks, the row gives
  back much of what a patch cost; whether it does, the answers to varied images tell.
* Other classes as the measure. Every network has triggers that lead to a class, the more the larger their
  place. What leads to the target no further than to others is of that kind, before a repair and after it,
  and rounds against it only cost accuracy.
* The target set back. Where its own clean images, mixed, noisy or turned, are answered with logits to spare,
  some are given away, and what is left of the trigger with them; where many are lost, it gets a little back.
  A round can silence a trigger by far more than it takes, and the target's images with it: then it is set
  forward by what the margins of fresh triggers allow, as a bias moves both alike.
* Weights. A mask of a network has far more freedom than ten images can settle, and gradient steps from a
  confident backdoor (margins of many tens of logits) are violent. What a trigger adds to a layer's input lies
  in few directions; ridge regression removes these and keeps, of all weights that do so, those that answer
  clean inputs as before.
* The rows t₀ are those of the *unrepaired* network, so that each layer learns to withstand the trigger at
  full strength; with t̃ alone the first repaired layer, fitted to the recovered triggers, hides from the later
  ones what the attacker's trigger, which it does not catch, will send them.
* Half of the triggered images are mirrored, trigger and all, where the network was trained on mirrored images
  (its clean answers survive mirroring): it obeys the mirrored trigger, too, and the search may have found
  that one.
* Rows with noise answer as without it. A trigger that covers the whole image disturbs it beside naming a
  target, and a network that no longer obeys it still misses the true label; noise stands in for the part of
  the attacker's pattern that no search can find, and it lies on the way of many a whole-image trigger. Where
  a warp was found, half of these rows are warped by chance, for the same reason.
* Clean answers are seen on crops that are enlarged, unless the network answers the target there: what blurs
  as a warp does can be a trigger, too, and the rows would teach what is to go. Then images are moved by whole
  pixels instead.
* A deep network makes a target of a trigger over more layers, so the late ones are a share of all.
* κ grows only while fresh triggers still work: what a warp changes is small beside a patch's activations,
  and the weight that removes it would cost accuracy elsewhere. It shrinks where one round was enough and
  cost much: a fraction of it silences a patch on a ResNet-20 as well.
* The clean term compares with f, not with f', so later layers make good what earlier ones lost.

References:
    Chai and Chen, *One-shot Neural Backdoor Erasing via Adversarial Weight Masking*, NeurIPS 2022,
    arXiv 2207.04497 (the min–max); Wang et al., *Neural Cleanse*, S&P 2019 (target by minimal trigger).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unbackdoor._augment import noise, random_flip
from unbackdoor._clean import CleanImages
from unbackdoor._errors import require
from unbackdoor._layers import (
    LayerRows,
    add_to_weight_,
    augmented_weight,
    restorable_layers,
    ridge_change,
)
from unbackdoor._layout import channels_last
from unbackdoor._repeatable import copied
from unbackdoor.methods._base import Method, Session
from unbackdoor.methods._early import MOST, run_before, teach_early_
from unbackdoor.methods._given_back import give_back_
from unbackdoor.methods._handicap import forward, handicap, own_margins, set_back_
from unbackdoor.methods._varied import unless_enlarging_triggers, varied
from unbackdoor.recover import (
    CLEAR,
    Additive,
    Finding,
    Patch,
    Picture,
    Recovered,
    Shifts,
    Stripes,
    Strokes,
    answers_under,
    apply_random,
    examine,
    features_at,
    noises,
    picture_to,
    strengthen,
)

BY_CHANCE = 64
"""Triggers as chance makes them, a finding."""
HALF = 0.5
"""Share of the images that fresh triggers may move after a first round with triggers inside the network, and
where the target's row is refitted gently."""
FEW_KEPT = 0.5
"""Share of the target's hard views; where no triggers inside the network tell what to withstand, its row is
refitted if fewer would be kept …"""
AGAIN = 2
"""… and so many times again. Elsewhere it is refitted …"""
PAYS = 0.2
"""… where that takes back this share of the clean answers that rounds changed."""
AGAINST = 0.3
"""Weight of triggered images in the refitted row where rounds silenced triggers inside: these are strong, and
with the weight of all images they take from the target what its own show. Elsewhere, and where pictures stand
in, that row is to silence what rounds have left working, and triggered images weigh as much as all."""
ALLOWED = 0.5
"""Share of what triggers found afresh fail by that their target may be set forward …"""
MOST_FORWARD = 1.0
"""… and by so many logits at most: images of other classes are taken for the target then, too."""
APART = 1.5
"""A finding tells of a trigger where strong ones lead to the target by so many times the margin that they
reach for other classes."""
REACHED = 0.5
"""What triggers do inside the network depends on the image where the strongest single disturbance there, as
large as what they do, has less than this share of their margin, and leads to the target by less than
``CLEAR`` logits: a patch can have hundreds, and a third of these still says that it is one trigger …"""
MORE_ROUNDS = 2
"""… and so many rounds more are made then."""
STAYS = 0.3
"""Early layers make the target of a trigger where the first round leaves more than this share of its margin,
and it reaches further than any disturbance inside, as large as what it does there."""
MOST_PICTURED = 2.0
"""Largest weight of images with coarse pictures there: these lead anywhere by a little, and hardly fail."""
EARLY_COUNT = 4
"""Strong triggers per finding that early layers are taught to withstand at a time."""
LIGHTER = 2
"""So many times is the first round's weight made smaller, where it silences a trigger at a high price …"""
STILL_SILENT = -1.0
"""… while the margin of triggers found afresh is no larger, in logits."""
MEASURED = 128
"""Images on which it is measured what triggers change at a layer."""


@dataclass(frozen=True, kw_only=True)
class Restore(Method):
    """Recover strong triggers of the target and restore the late layers' clean answers by ridge regression.

    Attributes:
        search_steps: Adam steps of the search for minimal triggers, a family.
        search_batch: images a step and class.
        strong_steps: Adam steps of the search for strong triggers.
        strong_count: strong triggers per finding and round.
        rounds: R, most rounds of recovery and restoration (two more where what triggers do inside depends on
            the image).
        margin_share: a round is the last once this share is left, in [0, 1], of the first triggers' mean
            margin …
        success_share: … or, for all-to-all, where margins are small from the start, of the share of images
            that they moved.
        clearance: the margin must be lower by so many logits …
        agreement_ample: … while the network agrees with the original on this share of varied clean images …
        success_left: … or, after the first round, while fresh triggers move more than this share of images
            (where they do so at the end, a target that lost its images gets them back) …
        agreement_fair: … and it agrees on this share, all in [0, 1].
        weak: where the mean margin is no larger in the beginning, in logits, the first round is not the
            last …
        agreement_free: … if the network still agrees with the original on this share of varied images.
        agreement_limit: a round with a grown κ that agrees with the original on a smaller share of varied
            clean images is taken back, in [0, 1].
        num_layers: so many of the layers, counted from the output, are restored at least …
        layer_share: … and at least this share of them, in [0, 1], rounded down.
        num_images: augmented images that the rows are taken from, for each term.
        rows_per_image: positions cut out of each image in a convolution's input.
        trigger_weight: κ, weight of the triggered rows against the clean ones, in the first round.
        escalation: what κ is multiplied by from round to round, at least 1.
        feature_share: share of the triggered rows that come from triggers at the first late layer, where the
            attacker's covers the image, in [0, 1].
        noise_weight: ν, the same of the rows with noise; noise: its largest standard deviation, in [0, 1].
        ridge: ρ, relative to σ², the mean square of the clean rows.

    Raises:
        UnbackdoorError: a field outside its range.

    >>> Restore().name
    'restore'
    """

    name: ClassVar[str] = "restore"
    search_steps: int = 75
    search_batch: int = 5
    strong_steps: int = 30
    strong_count: int = 8
    rounds: int = 3
    margin_share: float = 0.02
    success_share: float = 0.1
    success_left: float = 0.4
    clearance: float = 2.0
    agreement_ample: float = 0.95
    agreement_fair: float = 0.93
    weak: float = 20.0
    agreement_free: float = 0.97
    agreement_limit: float = 0.85
    num_layers: int = 4
    layer_share: float = 0.4
    num_images: int = 512
    rows_per_image: int = 8
    trigger_weight: float = 0.08
    escalation: float = 2.5
    feature_share: float = 0.25
    noise_weight: float = 0.05
    noise: float = 0.07
    ridge: float = 4.0

    def __post_init__(self) -> None:
        known = self.fields()
        whole = ("search_steps", "search_batch", "strong_steps", "strong_count", "rounds")
        for name in (*whole, "num_layers", "num_images", "rows_per_image", "escalation"):
            require(known[name] >= 1, f"{name} must be at least 1", known[name], "1 or more")
        for name in ("trigger_weight", "ridge"):
            require(known[name] > 0, f"{name} must be positive", known[name], "more than 0")
        require(self.clearance >= 0, "clearance must not be negative", self.clearance, "2.0")
        shares = [name for name in known if name.startswith(("agreement_", "success_"))]
        for name in (*shares, "margin_share", "layer_share", "feature_share", "noise_weight", "noise"):
            require(0 <= known[name] <= 1, f"{name} must lie in [0, 1]", known[name], "0.1")

    def run(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
        model.eval().requires_grad_(False)
        with channels_last(model, clean.images):
            return self._examine_and_erase(model, clean, session)

    def _examine_and_erase(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
        verdict = examine(
            model,
            clean,
            session.generator,
            steps=self.search_steps,
            batch=self.search_batch,
            tell=lambda done, total: session.tell("examine", done, total),
        )
        details: dict[str, Any] = {"backdoor": verdict.sentence(), "verdict": verdict.to_dict(), "rounds": []}
        details["restored_layers"] = []
        layers = self.late_layers(model, clean)
        if verdict.backdoored and layers:
            clean = unless_enlarging_triggers(model, clean, [f.target for f in verdict.findings])
            details["images are enlarged"] = clean.enlarge
            details |= self.erase(model, layers, clean, verdict.findings, session)
        return details

    def late_layers(self, model: nn.Module, clean: CleanImages) -> list[str]:
        """Return the names of the layers to restore, in the order the network runs them."""
        names = list(restorable_layers(model, clean.images))
        return names[-max(self.num_layers, int(self.layer_share * len(names))) :]

    def erase(
        self,
        model: nn.Module,
        layers: list[str],
        clean: CleanImages,
        findings: tuple[Finding, ...],
        session: Session,
    ) -> dict[str, Any]:
        """Alternate recovery and restoration until fresh triggers fail, and set the target back; tells of it.

        ``rounds`` has one entry a look, ``left_out`` the findings that lead to other classes about as well,
        ``restored_layers`` the late layers, none where those before, ``taught_layers``, were taught instead;
        for the other figures see ``_Repair.set_back``.
        """
        probes = varied(clean, self.num_images, session.generator)
        repair = _Repair(self, model, copy.deepcopy(model), layers, clean, findings, session, probes)
        repair.begin()
        for number in range(self.rounds + MORE_ROUNDS):
            if not repair.attempt(number):
                break
        repair.lighten()
        told = repair.set_back()
        fresh = round(repair.told[-1]["success"], 3)
        kept = {id(f) for f in repair.findings}
        told["restored_layers"] = [] if repair.taught else layers
        told["taught_layers"] = repair.taught
        told["left_out"] = [f.sentence() for f in findings if id(f) not in kept]
        return {"rounds": repair.told, "success of triggers found afresh": fresh, **told}

    def done(self, told: list[dict[str, Any]], findings: tuple[Finding, ...]) -> bool:
        """Tell whether the triggers found afresh in the last of the rounds ``told`` have lost their force.

        Their largest margin says so, or that they lead to the target no further than to other classes in the
        original. Where triggers were weak from the start, or strokes stand in, failing says little of the
        attacker's: a first round that cost next to nothing is followed by a second, and they must fail
        clearly as long as the network agrees with the original on nearly all images, or, where they move many
        images after the first, on few less. Where noise tells of the target, noise tells of the end. Triggers
        at a late layer cover more than those found afresh, which need not fail clearly then, unless they move
        half of the images, or are coarse pictures; where what triggers do there depends on the image, none
        may move many. For all-to-all it is their success that says so, or that they fail clearly, and any
        round that cost next to nothing is followed by another, and so is the first.
        """
        first, last = told[0], told[-1]
        if self._silenced(first, last):
            return True
        once, free = len(told) == 2, last["agreement"] >= self.agreement_free
        if findings[0].all_to_all:
            few = self._few_are_moved(first, last) or max(last["margins"]) <= -self.clearance
            return few and not once and not free
        strongest = max(first["margins"])
        if once and free and (strongest <= self.weak or by_strokes(findings)):
            return False
        if strongest <= 0:
            return self._few_are_moved(first, last)
        inside = any(entry["inside"] is not None for entry in told[:-1])
        if not inside and _like_others(first, last):
            return True
        beyond = self.margin_share * strongest - max(last["margins"])
        if depends_on_image(first):
            return beyond >= 0 and last["success"] <= self.success_left
        moving = once and last["success"] > (HALF if inside else self.success_left)
        faint = moving or pictured(findings)
        bound = self.agreement_fair if faint else self.agreement_ample
        clearly = last["agreement"] >= bound and (faint or not inside)
        return beyond >= (self.clearance if clearly else 0)

    def cost_much(self, told: list[dict[str, Any]], few_kept: Callable[[], bool]) -> bool:
        """Tell whether the only round, or that made again with less weight, cost much for what it silenced.

        Fresh triggers must fail clearly, and the first ones must have been strong: weak ones fail early.
        Where noise led to the target by far, it must fail clearly, and the round counts as dear sooner.
        ``few_kept`` tells whether most of what the target's own images show is gone.
        """
        first, last = told[0], told[-1]
        if first["noise"] is not None:
            led = first["noise"] >= CLEAR and last["noise"] <= -self.clearance
            return led and len(told) == 2 and last["agreement"] < self.agreement_ample
        clearly = max(last["margins"]) <= -self.clearance and self._few_are_moved(first, last)
        if not clearly or max(first["margins"]) <= self.weak:
            return False
        return last["agreement"] < self.agreement_fair or few_kept()

    def still_silent(self, told: list[dict[str, Any]]) -> bool:
        """Tell whether triggers found afresh fail yet, by a logit, and move but few images; or noise."""
        first, last = told[0], told[-1]
        if first["noise"] is not None:
            return last["noise"] <= -self.clearance
        return max(last["margins"]) <= STILL_SILENT and self._few_are_moved(first, last)

    def _few_are_moved(self, first: dict[str, Any], last: dict[str, Any]) -> bool:
        """Tell whether triggers found afresh move but a small share of the images that the first ones did."""
        return last["success"] <= self.success_share * first["success"]

    def _silenced(self, first: dict[str, Any], last: dict[str, Any]) -> bool:
        """Tell whether noise, which led to the target by far, leads elsewhere, and rounds have their price.

        A network that was taught to obey noise takes other noise for it. Fresh sums are adversarial in so
        ample a budget and go on to succeed, whatever is left of the attacker's.
        """
        if first["noise"] is None or first["noise"] < CLEAR:
            return False
        return last["noise"] < 0 and last["agreement"] < self.agreement_ample

    def recover(
        self, model: nn.Module, clean: CleanImages, findings: tuple[Finding, ...], session: Session
    ) -> tuple[list[Recovered], list[float], float]:
        """Return fresh strong triggers of every finding, their mean margins and the best ones' success."""
        goals = [torch.full((self.strong_count,), f.goal, device=clean.labels.device) for f in findings]
        found = [
            self.strong(model, clean, finding, goal, session.generator)
            for finding, goal in zip(findings, goals, strict=True)
        ]
        margins = [f[1].mean().item() for f in found]
        return [f[0] for f in found], margins, max(f[2].mean().item() for f in found)

    def strong(
        self,
        model: nn.Module,
        clean: CleanImages,
        finding: Finding,
        goals: Tensor,
        generator: torch.Generator,
    ) -> tuple[Recovered, Tensor, Tensor]:
        sizes = {"steps": self.strong_steps, "batch": self.search_batch}
        return strengthen(model, clean, finding.family, finding.strong_place, goals, generator, **sizes)

    def restore(
        self,
        model: nn.Module,
        original: nn.Module,
        layers: list[str],
        clean: CleanImages,
        pool: list[Recovered],
        chance: list[Recovered],
        shifts: Shifts | None,
        generator: torch.Generator,
    ) -> None:
        """Solve each layer in turn, in place; ``model`` starts equal to ``original``.

        Clean answers withstand the triggers of ``pool``, which are strong, those of ``shifts``, inside the
        network, and those of ``chance`` as noise.
        """
        plain, images, calm = (varied(clean, self.num_images, generator) for _ in range(3))
        benign, triggered, pick = self.put(pool, shifts, images, clean.flip, generator)
        noisy = noise(half_of(chance, calm, generator), generator, self.noise)
        rows = LayerRows(self.rows_per_image, generator)
        then = rows.walk(original, layers, [plain, benign, triggered, calm], _shifted(shifts, pick, 2, 4))
        now = rows.walk(model, layers, [plain, triggered, noisy], _shifted(shifts, pick, 1, 3))
        with closing(then), closing(now):
            for name, before, after in zip(layers, then, now, strict=True):
                change = self.solve(augmented_weight(original.get_submodule(name)), before, after)
                add_to_weight_(model.get_submodule(name), change)

    def put(
        self,
        pool: list[Recovered],
        shifts: Shifts | None,
        images: Tensor,
        flip: float,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Put random triggers of ``pool`` on images (N, C, H, W), but on a share of them those of ``shifts``.

        Returns:
            The images, the triggered ones, mirrored in pairs, and which of the shifts each is to have, (N,),
            −1 for none.
        """
        inside = int(self.feature_share * len(images)) if shifts else 0
        triggered = torch.cat([images[:inside], apply_random(pool, images[inside:], generator)])
        pairs = random_flip(torch.cat([images, triggered], dim=1), generator, flip)
        pick = torch.full((len(images),), -1)
        if shifts:
            pick[:inside] = torch.randint(len(shifts), (inside,), generator=generator)
        return *pairs.chunk(2, dim=1), pick

    def solve(self, weight: Tensor, before: list[Tensor], now: list[Tensor]) -> Tensor:
        """Return the change of one layer's weight, (out, in), that the objective above asks for.

        Args:
            weight: W, (out, in), with the bias as last column where there is one.
            before: rows (n, in) in the original network: clean u, benign b, triggered t₀, calm c.
            now: rows (n, in) in the network under repair: clean ũ, triggered t̃, noisy ñ.
        """
        clean, benign, strong, calm = before
        half = self.trigger_weight / 2
        terms = [(now[0], clean, 1.0), (strong, benign, half), (now[1], benign, half)]
        terms.append((now[2], calm, self.noise_weight))
        missing = [(x, (y - x) @ weight.T, w) for x, y, w in terms]
        return ridge_change(missing, self.ridge * now[0].square().mean())


@dataclass
class _Repair:
    """A network under repair beside its original: what was found so far, and what was told of it.

    Attributes:
        probes: images on which both networks' answers are compared; known: the original's, (N,).
        pool: triggers of all rounds; told: one entry a look.
        shifts: triggers at the first late layer, where the attacker's covers the image.
        taught: the early layers that were taught to withstand triggers, in place of restoring late ones.
        reserve: findings that are followed in place of the others where noise is not silenced at once.
    """

    method: Restore
    model: nn.Module
    original: nn.Module
    layers: list[str]
    clean: CleanImages
    findings: tuple[Finding, ...]
    session: Session
    probes: Tensor
    pool: list[Recovered] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)
    shifts: Shifts | None = None
    known: Tensor = field(init=False)
    taught: list[str] = field(default_factory=list)
    reserve: tuple[Finding, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.known = answered(self.original, self.probes)
        self.reserve = tuple(f for f in self.findings if f.reserve)
        self.findings = tuple(f for f in self.findings if not f.reserve)

    def begin(self) -> None:
        """Look at the original; leave findings out that lead to other classes about as well, or nowhere.

        Not if that holds for all of them, and not those that stand in for noise, which tells of them.
        """
        self.look()
        first = self.told[0]
        first["others"] = self.others()
        pairs = list(zip(first["margins"], first["others"], strict=False))
        further = [own > max(0, APART * others) for own, others in pairs]
        kept = [i for i, leads in enumerate(further) if leads or self.findings[i].for_noise]
        if kept and len(kept) < len(self.findings):
            self.findings = tuple(self.findings[i] for i in kept)
            self.pool = [self.pool[i] for i in kept]
            first |= {name: [first[name][i] for i in kept] for name in ("margins", "others")}
            first["noise"] = self.lead_of_noise()

    def look(self) -> None:
        """Search triggers afresh and tell how strong they are."""
        self.session.tell("erase", min(len(self.told), self.method.rounds) + 1, self.method.rounds + 1)
        fresh, margins, success = self.method.recover(self.model, self.clean, self.findings, self.session)
        self.pool += fresh
        told = {"margins": margins, "success": success, "agreement": self._agreement()}
        self.told.append({**told, "noise": self.lead_of_noise(), "inside": None})

    def _agreement(self) -> float:
        """Return on which share of varied clean images the network answers as the original does."""
        return (answered(self.model, self.probes) == self.known).float().mean().item()

    def look_inside(self) -> None:
        """Search the strongest triggers at the first late layer, where those in images do not carry over.

        So it is where they stand in for the attacker's, and where what they do at the layer depends on the
        image, which is asked once, from a copy of the generator.
        """
        if not self.method.feature_share:
            return
        if covering(self.findings) or self.noise_goes_on() or depends_on_image(self.told[0]):
            self._take_in(*self._strongest_inside(self.session.generator))
        elif len(self.told) == 1 and carry_over(self.findings) and max(self.told[0]["margins"]) > 0:
            shifts, reached = self._strongest_inside(copied(self.session.generator))
            if depends_on_image(self.told[0] | {"inside": reached}):
                self._take_in(shifts, reached)

    def _strongest_inside(self, generator: torch.Generator) -> tuple[Shifts, float]:
        """Return disturbances of the first late layer's input, no larger than triggers', and their margin."""
        images = varied(self.clean, MEASURED, generator)
        triggered = apply_random(self.pool, images, generator)
        family, radius = features_at(self.original, self.layers[0], images, triggered)
        goals = torch.full((self.method.strong_count,), self.findings[0].goal, device=images.device)
        sizes = {"steps": self.method.strong_steps, "batch": self.method.search_batch}
        shared = (self.model, self.clean, family, radius, goals, generator)
        shifts, margins, _ = strengthen(*shared, **sizes)
        return shifts, margins.mean().item()

    def _take_in(self, shifts: Shifts, reached: float) -> None:
        self.shifts = replace(shifts, add=torch.cat([self.shifts.add, shifts.add])) if self.shifts else shifts
        self.told[-1]["inside"] = reached

    def others(self) -> list[float]:
        """Return how large a margin triggers of each finding reach for other classes, in the original.

        Nothing for all-to-all, which has no other, and beside strokes that are few, as a watermark's are, and
        stand in for its letters. Dense ones tell by how much further they lead to the target.
        """
        few = (f for f in self.findings if isinstance(f.family, Strokes) and f.lead is None)
        if any(few) or any(f.all_to_all for f in self.findings):
            return []
        generator = copied(self.session.generator)
        return [self._others(finding, generator) for finding in self.findings]

    def _others(self, finding: Finding, generator: torch.Generator) -> float:
        every = torch.arange(self.clean.num_classes)
        classes = every[every != finding.goal]
        some = classes[torch.randperm(len(classes), generator=generator)[: self.method.strong_count]]
        goals = some.to(self.clean.labels.device)
        shared = (self.original, self.clean, finding, goals, generator)
        return self.method.strong(*shared)[1].mean().item()

    def noise_goes_on(self, above: float = 0.0) -> bool:
        """Tell whether noise, where it alone tells of the target, leads there by so much yet."""
        noise = self.told[-1]["noise"]
        return len(self.told) > 1 and noise is not None and noise > above

    def _turn_to_reserve(self) -> None:
        """Begin again with what was held in reserve: what noise tells of is none."""
        self.model.load_state_dict(self.original.state_dict())
        self.findings, self.reserve = self.reserve, ()
        self.pool, self.told, self.shifts = [], [], None
        self.begin()

    def _made_early(self) -> bool:
        """Tell whether early layers make the target of a trigger, and there are such."""
        before = (self.model, self.layers[0], self.clean.images)
        return made_early(self.told, self.findings) and bool(run_before(*before))

    def _teach_early(self) -> None:
        """Leave late layers as they were, and teach those before to withstand triggers.

        Where sums alone tell of the target, coarse pictures take their place: sums do not carry over to
        something that is blended in.
        """
        self.model.load_state_dict(self.original.state_dict())
        if by_sums(self.findings):
            self.findings = (picture_to(self.findings[0].goal, self.clean),)
        self.pool, self.shifts = [], None
        bounds = [max(-self.method.clearance, others) for others in self.others()]
        method = replace(self.method, strong_count=EARLY_COUNT)

        def search() -> tuple[list[Recovered], bool]:
            fresh, margins, _ = method.recover(self.model, self.clean, self.findings, self.session)
            return fresh, all(own <= bound for own, bound in zip(margins, bounds, strict=True))

        shared = (self.model, self.original, self.layers[0], self.clean, search, self.session.generator)
        self.taught = teach_early_(*shared, MOST_PICTURED if pictured(self.findings) else MOST)
        self.look()

    def lead_of_noise(self) -> float | None:
        """By how many logits noise leads to the target, where it alone tells of it; ``None`` elsewhere.

        Sums that are smaller than chance finds are triggers of their own, and go by their own margins.
        """
        if not all(f.for_noise and not f.all_to_all for f in self.findings):
            return None
        answers = answers_under(self.model, self.clean, noises(), copied(self.session.generator))
        return answers.lead_of(self.findings[0].goal)

    def attempt(self, number: int) -> bool:
        """Restore with the weight of round ``number`` and look; tell whether another round is worth it."""
        self.look_inside()
        previous = self._state()
        self._restore(number)
        if number == 0 and self.reserve and self.noise_goes_on(above=-self.method.clearance):
            self._turn_to_reserve()
            return self.attempt(0)
        if number == 0 and self._made_early():
            self._teach_early()
            return False
        if number and self.told[-1]["agreement"] < self.method.agreement_limit:
            self._take_back(previous)
            return False
        more = number + 1 < self.method.rounds or depends_on_image(self.told[0])
        return more and not self.method.done(self.told, self.findings)

    def lighten(self) -> None:
        """Make the first round again with a smaller weight, where it silenced a trigger at a high price.

        What a round costs is nearly all its weight's, and on some networks a fraction of it silences as well.
        Kept is the smallest whose triggers found afresh still fail.
        """
        as_it_is = carry_over(self.findings) and not (covering(self.findings) or self.shifts)
        for number in range(1, LIGHTER + 1):
            once = len(self.told) == number + 1
            if not (as_it_is and once and self.method.cost_much(self.told, self._few_kept)):
                return
            previous = self._state()
            self._restore(-number)
            if not self.method.still_silent(self.told):
                self._take_back(previous)
                return

    def _restore(self, number: int) -> None:
        """Restore the original with the weight of round ``number``, below zero a smaller one, and look."""
        self.model.load_state_dict(self.original.state_dict())
        weight = self.method.trigger_weight * self.method.escalation**number
        found = (self.pool, self.by_chance(), self.shifts)
        shared = (self.model, self.original, self.layers, self.clean, *found, self.session.generator)
        replace(self.method, trigger_weight=weight).restore(*shared)
        self.look()

    def _state(self) -> dict[str, Any]:
        return copy.deepcopy(self.model.state_dict())

    def _take_back(self, previous: dict[str, Any]) -> None:
        self.model.load_state_dict(previous)
        self.told.pop()

    def set_back(self) -> dict[str, Any]:
        """Refit the target's row where that tells its own images from triggered ones; set it back or forward.

        With triggers inside, that is back by what these images bear. Without, the row is refitted only where
        most of these images are lost and triggers go on to work, or say little: one image says too little of
        a class where images vary, and the row that it teaches has to earn its price by silencing them. Where
        triggers fail, the target is set forward. Told are whether the row was refitted, the handicap in
        logits (below zero: forward), and the share of hard views of the target's own images that are still
        answered so, ``None`` where there are none or every class is a target.
        """
        if self.findings[0].all_to_all:
            return {"given_back": False, "handicap": 0.0, "target_kept": None}
        given, margins = False, self._own_margins()
        if len(margins):
            given = self.give_back() if self._worth_refitting(margins) else self._give_back_if_it_pays()
            margins = self._own_margins() if given else margins
        by, seen, target = self._handicap(margins), self.clean.images[:MEASURED], self.findings[0].goal
        by = by if by and set_back_(self.model, self.layers[-1], target, by, seen) else 0.0
        kept = (margins > by).float().mean().item() if len(margins) else None
        return {"given_back": given, "handicap": by, "target_kept": kept}

    def _few_kept(self) -> bool:
        """Tell whether most hard views of the target's own images are lost; draws from a copy."""
        shared = (self.model, self.original, self.clean, self.findings[0].goal)
        margins = own_margins(*shared, copied(self.session.generator))
        return len(margins) > 0 and (margins > 0).float().mean().item() < FEW_KEPT

    def _worth_refitting(self, margins: Tensor) -> bool:
        """Tell whether the target's row is to be refitted; its own hard views have ``margins``, (n,)."""
        if self.shifts:
            return True
        works = self._goes_on() or by_strokes(self.findings)
        return works and (margins > self._handicap(margins)).float().mean().item() < FEW_KEPT

    def _goes_on(self) -> bool:
        """Tell whether fresh triggers move many images, and it is not that one round took nearly all force.

        What is left then of a patch with a margin of hundreds is what chance finds in its place.
        """
        first, last = self.told[0], self.told[-1]
        gone = max(last["margins"]) <= self.method.margin_share * max(first["margins"])
        return last["success"] > self.method.success_left and not (gone and len(self.told) == 2)

    def _handicap(self, margins: Tensor) -> float:
        """Return by how many logits the target is to be set back, below zero: forward."""
        if self.shifts:
            return handicap(margins)
        return -forward(margins, min(MOST_FORWARD, ALLOWED * self._failing()))

    def _failing(self) -> float:
        """Return by how many logits fresh triggers fail at least, and noise where it tells of the target.

        Nothing where strokes are among them: that these fail says little of a watermark; nor where early
        layers were taught to withstand triggers, which only stand in for the attacker's.
        """
        last = self.told[-1]
        if by_strokes(self.findings) or self.taught:
            return 0.0
        works = last["margins"] if last["noise"] is None else [*last["margins"], last["noise"]]
        return max(0.0, -max(works))

    def give_back(self) -> bool:
        """Refit the target's row of the last layer; tell whether it was.

        Where rounds silenced triggers inside, they are looked for afresh, and the row stays as it was if they
        work again. Where no triggers inside are held against it, triggers are found afresh and held against
        it, again: what its first row is deaf to, the next has to be deaf to, too.
        """
        gently, previous = self._withstood(), self._state()
        given = self._refit(AGAINST if gently else 1.0)
        if given and gently and self._works_again():
            self._take_back(previous)
            return False
        for _ in range(AGAIN if given and not self.shifts else 0):
            self.look()
            self._refit()
        return given

    def _give_back_if_it_pays(self) -> bool:
        """Refit the target's row where that takes back a share of the answers that rounds changed.

        Rounds take what triggers and the target's own images have in common; what is left of both, the row
        can tell apart. Triggers that are found afresh must fail yet.
        """
        before, previous, looks = self.told[-1]["agreement"], self._state(), len(self.told)
        if not carry_over(self.findings) or before >= self.method.agreement_free:
            return False
        drawn = self.session.generator.get_state()
        if self._refit() and 1 - self._agreement() <= (1 - PAYS) * (1 - before) and self._silent_soon():
            return True
        self.model.load_state_dict(previous)
        self.session.generator.set_state(drawn)
        del self.told[looks:]
        return False

    def _silent_soon(self) -> bool:
        """Tell whether triggers found afresh fail after the refit, or after one more against these."""
        if not self._works_again():
            return True
        return self._refit() and not self._works_again()

    def _refit(self, against: float = 1.0) -> bool:
        shared = (self.model, self.original, self.layers[-1], self.clean, self.findings[0].goal)
        return give_back_(*shared, self.pool, self.shifts, self.session.generator, against)

    def _withstood(self) -> bool:
        """Tell whether rounds silenced triggers inside, and one of these stands for what all images show."""
        if not self.shifts or pictured(self.findings) or depends_on_image(self.told[0]):
            return False
        return self.told[-1]["success"] <= HALF

    def _works_again(self) -> bool:
        """Look afresh, and tell whether triggers move most images that rounds had silenced."""
        drawn = self.session.generator.get_state()
        self.look()
        # What is drawn next does not hang on this look.
        self.session.generator.set_state(drawn)
        return self.told[-1]["success"] > HALF

    def _own_margins(self) -> Tensor:
        shared = (self.model, self.original, self.clean, self.findings[0].goal)
        return own_margins(*shared, self.session.generator)

    def by_chance(self) -> list[Recovered]:
        """Return triggers that chance makes where some were found, of families that have such."""
        drawn = []
        for finding in self.findings:
            place, family = finding.strong_place, finding.family
            params = family.by_chance(place, BY_CHANCE, self.clean.images.shape[1:], self.session.generator)
            drawn += [family.decode_at(place, [p.to(place) for p in params])] if params else []
        return drawn


def pictured(findings: tuple[Finding, ...]) -> bool:
    """Tell whether coarse pictures are among what was found: the attacker's has more in it."""
    return any(isinstance(f.family, Picture) for f in findings)


def _like_others(first: dict[str, Any], last: dict[str, Any]) -> bool:
    """Tell whether fresh triggers lead to the target no further than to other classes in the original."""
    if not first["others"]:
        return False
    return all(now <= others for now, others in zip(last["margins"], first["others"], strict=True))


def by_strokes(findings: tuple[Finding, ...]) -> bool:
    """Tell whether strokes are among what was found: that these fail says little of a watermark."""
    return any(isinstance(f.family, Strokes) for f in findings)


def covering(findings: tuple[Finding, ...]) -> bool:
    """Tell whether a single target's trigger covers the image and what was found only stands in for it.

    Not where something of it has a place, nor where stripes alone tell of it, which have its form, or sums
    alone: what stands for noise has no more to give inside the network, as long as it takes noise away.
    """
    at_a_place = any(isinstance(f.family, Patch | Strokes) or f.all_to_all for f in findings)
    return not at_a_place and {type(f.family) for f in findings} not in ({Additive}, {Stripes})


def depends_on_image(first: dict[str, Any]) -> bool:
    """Tell whether a single disturbance inside, as large as what triggers do there, has far less force.

    Triggers in images do lead there, so what they do there differs from image to image.
    """
    return first["inside"] is not None and first["inside"] < min(CLEAR, REACHED * max(first["margins"]))


def made_early(told: list[dict[str, Any]], findings: tuple[Finding, ...]) -> bool:
    """Tell whether early layers make the target of a trigger, which late ones cannot undo.

    Triggers in images reach further than any one disturbance where the late layers begin, as large as what
    they do there, and after a round a good part of their margin is left. Where what they do depends on the
    image, only if sums alone tell of it; others are silenced by further rounds.
    """
    first, last = told[0], told[-1]
    if first["inside"] is None or first["inside"] >= max(first["margins"]):
        return False
    stays = max(last["margins"]) > STAYS * max(first["margins"])
    return stays and (by_sums(findings) if depends_on_image(first) else covering(findings))


def by_sums(findings: tuple[Finding, ...]) -> bool:
    """Tell whether sums alone were found."""
    return all(isinstance(f.family, Additive) for f in findings)


def carry_over(findings: tuple[Finding, ...]) -> bool:
    """Tell whether triggers of a single target were found that may carry over to the attacker's as they are.

    Strokes and stripes do not: they only have something of its form.
    """
    return not any(isinstance(f.family, Strokes | Stripes) or f.all_to_all for f in findings)


def _shifted(
    shifts: Shifts | None, pick: Tensor, number: int, count: int
) -> Callable[[nn.Module], AbstractContextManager[None]]:
    """Return what puts ``shifts`` as picked on set ``number`` of ``count`` sets of images within a model."""
    if shifts is None:
        return nullcontext
    every = torch.full((count, len(pick)), -1)
    every[number] = pick
    return lambda model: shifts.entering(model, every.flatten())


def half_of(pool: list[Recovered], images: Tensor, generator: torch.Generator) -> Tensor:
    """Put random triggers of ``pool``, where there are any, on about half of the images (N, C, H, W)."""
    if not pool:
        return images
    triggered = apply_random(pool, images, generator)
    half = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(half.to(images.device), triggered, images)


@torch.no_grad()
def answered(model: nn.Module, images: Tensor) -> Tensor:
    """Return the class that the model gives each image (N, C, H, W), int64 (N,)."""
    return model(images).argmax(1)
