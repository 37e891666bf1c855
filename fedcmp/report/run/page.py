"""All sections of a run, in the order of reading."""

from __future__ import annotations

from fedcmp.evaluation.image_use import ignores_pictures
from fedcmp.report.blocks import Fact, Grid, Page, Section
from fedcmp.report.run.baselines import alone_section, tuning_section
from fedcmp.report.run.clients import clients_section
from fedcmp.report.run.composition import split_section
from fedcmp.report.run.costs import costs_section
from fedcmp.report.run.examples import examples_section
from fedcmp.report.run.interference import interference_section
from fedcmp.report.run.loss import loss_section
from fedcmp.report.run.oscillation import oscillation_section
from fedcmp.report.run.reading import Run
from fedcmp.report.run.reliability import reliability_section
from fedcmp.report.run.rerun import rerun_section
from fedcmp.report.words import count, duration, is_number, method, number

LONGEST = 600
"""An error is shown up to so many letters."""
SECTIONS = (
    loss_section,
    examples_section,
    alone_section,
    tuning_section,
    clients_section,
    split_section,
    interference_section,
    oscillation_section,
    reliability_section,
    costs_section,
    rerun_section,
)


def run_page(run: Run) -> Page:
    """What a run folder has to tell; parts that are missing are left out."""
    sections = [section for make in SECTIONS if (section := make(run))]
    if probe := _questions(run):
        sections.insert(min(2, len(sections)), probe)
    unused = run.state in ("finished", "budget") and ignores_pictures(run.tested)
    return Page(
        kind="Run",
        title=str(run.summary.get("name") or run.setting("run", "name") or run.path.resolve().name),
        lead=_lead(run),
        state="unused" if unused else run.state,
        badge=f"{run.state}, pictures not used" if unused else run.state,
        facts=_facts(run),
        sections=sections,
        alarm=_alarm(run),
    )


def _lead(run: Run) -> str:
    done, planned = len(run.rounds), run.setting("federation", "rounds")
    clients = len(run.split.get("clients", {})) or len(run.clients)
    if run.kind == "federated":
        rounds = f"{done} rounds" if done != 1 else "one round"
        if run.state != "finished" and is_number(planned):
            rounds = f"{done} of {planned} rounds"
        did = "ran" if ignores_pictures(run.tested) else "trained the projector in"
        text = f"{method(run.method)} {did} {rounds} on {clients} clients."
        if not done:
            text = f"{method(run.method)} was to train the projector on {clients} clients; no round was finished."
    elif run.kind == "centralized":
        text = "One projector on the union of all clients' samples: an upper bound for a federation."
    elif run.kind == "local":
        text = f"One projector for each of {clients} clients, on its own samples alone: a lower bound for a federation."
    else:
        text = "No round has been recorded yet."
    _, losses = run.series("val/loss")
    if run.kind != "local" and len(losses) > 1:
        verb = "fell" if losses[-1] < losses[0] else "rose"
        text += f" The validation loss {verb} from {number(losses[0])} to {number(losses[-1])} nats per token."
    return text


def _alarm(run: Run) -> str:
    if run.state == "failed":
        error = str(run.summary.get("error", "its summary does not say why"))
        return f"The run failed: {error if len(error) <= LONGEST else error[:LONGEST] + ' …'}"
    if run.state == "budget":
        return f"The budget of privacy allowed no round after round {run.summary.get('rounds', len(run.rounds))}."
    if run.state == "stopped":
        return f"The run was asked to stop and did so after round {run.summary.get('rounds', len(run.rounds))}."
    if run.state == "running":
        after = f"after round {run.records[-1].get('round')}" if run.records else "before its first evaluation"
        return f"There is no summary yet: the run goes on, or it was killed. This page shows it {after}."
    if ignores_pictures(run.tested):
        return "The pictures do not matter: with other pictures the loss is about the same (image use is about zero)."
    return ""


def _facts(run: Run) -> list[Fact]:
    tested, summary = run.tested, run.summary
    facts = []
    if is_number(tested.get("loss")):
        shuffled = tested.get("loss_shuffled")
        note = f"{number(shuffled)} with other pictures" if is_number(shuffled) else ""
        facts.append(Fact("Test loss", number(tested["loss"]), note))
    _, losses = run.series("val/loss")
    end = summary.get("val/loss", {}).get("end", losses[-1] if losses and run.kind != "local" else None)
    if is_number(end):
        facts.append(Fact("Validation loss", number(end), "nats per token"))
    if is_number(tested.get("image_use")):
        error = f"± {number(tested['image_use_se'])}, " if is_number(tested.get("image_use_se")) else ""
        note = "about zero" if ignores_pictures(tested) else "nats that the right picture saves"
        facts.append(Fact("Image use", number(tested["image_use"]), f"{error}{note}"))
    if is_number(tested.get("cider")):
        facts.append(Fact("CIDEr", number(tested["cider"]), "of greedy captions"))
    if is_number(tested.get("token_accuracy")):
        facts.append(Fact("Token accuracy", f"{tested['token_accuracy']:.1%}"))
    if is_number(tested.get("digits_named")):
        chance = tested.get("digits_by_chance")
        note = f"{chance:.0%} with another picture's caption" if is_number(chance) else ""
        facts.append(Fact("Digits named", f"{tested['digits_named']:.0%}", note))
    if isinstance(worst := tested.get("worst_domain"), dict) and is_number(worst.get("loss")):
        facts.append(Fact("Worst domain", number(worst["loss"]), str(worst.get("name", ""))))
    _, spent = run.series("privacy/epsilon")
    if spent:
        facts.append(Fact("Epsilon", number(spent[-1]), f"of each client, at delta {run.setting('privacy', 'delta')}"))
    samples = summary.get("samples_seen", run.records[-1].get("samples_seen") if run.records else None)
    if is_number(samples):
        facts.append(Fact("Samples seen", count(samples)))
    if is_number(total := summary.get("seconds", {}).get("total")):
        facts.append(Fact("Wall time", duration(total), str(summary.get("device", ""))))
    return facts


def _questions(run: Run) -> Section | None:
    """Yes/no questions about objects, in POPE's form (Li et al., EMNLP 2023, arXiv 2305.10355)."""
    probe = run.tested.get("probe")
    if not isinstance(probe, dict) or not is_number(probe.get("accuracy")):
        return None
    kinds = probe.get("by_kind") or {}
    rows = [[name.capitalize(), number(value)] for name, value in kinds.items()]
    rows.append(["All", number(probe["accuracy"])])
    more = [[name.replace("_", " ").capitalize(), number(probe.get(name))] for name in ("precision", "recall", "f1")]
    more += [["Share of yes", number(probe.get("yes_ratio"))]]
    asked = count(probe.get("questions"))
    text = f"{asked} questions about what a picture shows, half of them about objects that are not in it; untrained."
    grids = [
        Grid("Accuracy by kind of absent object", ["kind", "accuracy"], rows, summed=True),
        Grid("Of all questions", ["measure", "value"], more),
    ]
    return Section("questions", "Yes or no: is it in the picture?", [text], grids=grids)
