//! What a certificate promises, whether it is kept, and the page that says so.

use super::{Budget, CertifyArgs, Findings, REPLY_TOKENS};
use crate::progress::grouped;
use crate::table::aligned;
use clap::ValueEnum as _;
use lapidary::eval::task::TaskKind;
use serde_json::{Value, json};

/// What a certificate is about beside the chats: a kind of task and its name.
const PARTS: [(TaskKind, &str); 3] =
    [(TaskKind::LetterChoice, "MMLU"), (TaskKind::LastWord, "LAMBADA"), (TaskKind::Perplexity, "perplexity")];

/// A promise, and whether it is kept.
pub(super) struct Check {
    /// What has to be.
    pub(super) promise: String,
    /// What is.
    pub(super) found: String,
    /// Whether it is as it has to be; never where nothing was measured.
    pub(super) kept: bool,
}

/// What the GEM promises by its scope, and what the user allows.
pub(super) fn checks(budget: &Budget, findings: &Findings) -> Vec<Check> {
    let Findings { drift, num_chats, same_replies, promises_equality, figures } = findings;
    let mut checks = Vec::new();
    let mut check =
        |promise: &str, found: String, kept: bool| checks.push(Check { promise: promise.to_owned(), found, kept });
    if *promises_equality {
        let (differ, all) = (drift.num_differing as u64, drift.num_logits as u64);
        let found = format!("{} of {} differ", grouped(differ), grouped(all));
        check("the base model's logits, bit for bit", found, differ == 0 && all > 0);
        let found = format!("{same_replies} of {num_chats} are");
        check("the base model's greedy replies", found, same_replies == num_chats && *num_chats > 0);
        if !figures.is_empty() {
            let differ: Vec<&str> =
                figures.iter().filter(|f| f.base.to_bits() != f.gem.to_bits()).map(|f| f.name.as_str()).collect();
            let found = if differ.is_empty() { "all are".to_owned() } else { format!("not {}", differ.join(", ")) };
            check("the base model's scores", found, differ.is_empty());
        }
    }
    if let Some(limit) = budget.max_kl {
        let found = format!("{:.6}", drift.mean_kl);
        check(&format!("mean KL(base || GEM) at most {limit} nats"), found, drift.mean_kl <= limit);
    }
    let limits = [
        (TaskKind::LetterChoice, "acc", budget.max_mmlu_drop),
        (TaskKind::LastWord, "acc", budget.max_lambada_drop),
        (TaskKind::Perplexity, "perplexity", budget.max_perplexity_rise),
    ];
    for ((kind, metric, limit), (_, name)) in limits.into_iter().zip(PARTS) {
        let Some(limit) = limit else { continue };
        let mut measured = figures.iter().filter(|figure| figure.kind == kind && figure.metric == metric).peekable();
        if measured.peek().is_none() {
            check(&format!("a limit for {name}"), "not measured: --data names no directory that has it".into(), false);
        }
        for figure in measured {
            let (promise, lost) = match kind {
                TaskKind::Perplexity => ("perplexity rises at most", 100.0 * (figure.gem / figure.base - 1.0)),
                _ => ("loses at most", figure.base - figure.gem),
            };
            let unit = if kind == TaskKind::Perplexity { "percent" } else { "points" };
            let promise = format!("{}: {promise} {limit} {unit}", figure.name);
            // What is no number is no figure within a limit.
            check(&promise, format!("{lost:.2}"), lost <= limit);
        }
    }
    checks
}

/// The promises that are broken, in words.
pub(super) fn broken(checks: &[Check]) -> Option<String> {
    let broken: Vec<String> = checks
        .iter()
        .filter(|check| !check.kept)
        .map(|check| format!("{}: found {}", check.promise, check.found))
        .collect();
    (!broken.is_empty()).then(|| broken.join("; "))
}

fn verdict(checks: &[Check]) -> &'static str {
    match checks {
        [] => "**Nothing was promised**: the scope changes the chat, and no limit was given.",
        checks if broken(checks).is_some() => "**Refused.**",
        _ => "**Within its promises.**",
    }
}

/// The certificate as one page.
pub(super) fn markdown(args: &CertifyArgs, findings: &Findings, checks: &[Check]) -> String {
    let Findings { drift, num_chats, same_replies, figures, .. } = findings;
    let mut page = format!(
        "# Damage certificate\n\nBase model: {}  \nGEM: {}  \nWeights of both: {}\n\n{}\n\n",
        args.base,
        args.gem,
        weights(args),
        verdict(checks)
    );
    for Check { promise, found, kept } in checks {
        page += &format!("- {}: {promise}; found: {found}\n", if *kept { "kept" } else { "**broken**" });
    }
    page +=
        &format!("{}## Next-token distributions on {num_chats} chats\n\n", if checks.is_empty() { "" } else { "\n" });
    let [differing, all] = [drift.num_differing, drift.num_logits].map(|number| grouped(number as u64));
    page += &format!("- {differing} of {all} logits differ in any bit\n");
    page += &format!("- KL(base || GEM) of a position: mean {:.6}, largest {:.6} nats\n", drift.mean_kl, drift.max_kl);
    page += &format!(
        "- the most likely token is the same at {:.2} % of {} positions\n",
        100.0 * drift.same_top,
        grouped(drift.num_positions as u64)
    );
    page += &format!("- {same_replies} of {num_chats} greedy replies of up to {REPLY_TOKENS} tokens are equal\n");
    page += "\n## What it knows\n\n";
    if !figures.is_empty() {
        let mut rows = vec![["task", "metric", "of", "base", "GEM", "change"].map(str::to_owned).to_vec()];
        for figure in figures {
            rows.push(vec![
                figure.name.clone(),
                figure.metric.to_owned(),
                grouped(figure.num_scored as u64),
                format!("{:.4}", figure.base),
                format!("{:.4}", figure.gem),
                format!("{:+.4}", figure.gem - figure.base),
            ]);
        }
        page += &format!("```\n{}```\n", aligned(&rows));
    }
    let missing = not_measured(findings);
    if !missing.is_empty() {
        page += &format!("Not measured: {} (--data names no directory that has it).\n", missing.join(", "));
    }
    page
}

fn weights(args: &CertifyArgs) -> String {
    args.weights.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn not_measured(findings: &Findings) -> Vec<&'static str> {
    let measured = |kind: TaskKind| findings.figures.iter().any(|figure| figure.kind == kind);
    PARTS.into_iter().filter(|(kind, _)| !measured(*kind)).map(|(_, name)| name).collect()
}

/// The certificate as JSON; `passed` is null where nothing was promised.
pub(super) fn json(args: &CertifyArgs, findings: &Findings, checks: &[Check]) -> Value {
    let Findings { drift, num_chats, same_replies, promises_equality, figures } = findings;
    let figures: Vec<Value> = figures
        .iter()
        .map(|f| json!({"task": f.name, "metric": f.metric, "num_scored": f.num_scored, "base": f.base, "gem": f.gem}))
        .collect();
    let passed = (!checks.is_empty()).then(|| broken(checks).is_none());
    let checks: Vec<Value> =
        checks.iter().map(|c| json!({"promise": c.promise, "found": c.found, "kept": c.kept})).collect();
    json!({
        "base": args.base,
        "gem": args.gem,
        "weights": weights(args),
        "passed": passed,
        "checks": checks,
        "promises_equality": promises_equality,
        "num_chats": num_chats,
        "num_same_replies": same_replies,
        "num_positions": drift.num_positions,
        "num_logits": drift.num_logits,
        "num_differing_logits": drift.num_differing,
        "mean_kl": drift.mean_kl,
        "max_kl": drift.max_kl,
        "same_top": drift.same_top,
        "figures": figures,
        "not_measured": not_measured(findings),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Figure;
    use super::*;
    use lapidary::eval::damage::Drift;

    fn unchanged() -> Findings {
        let figure = |name: &str, kind, metric, value| Figure {
            name: name.to_owned(),
            kind,
            metric,
            base: value,
            gem: value,
            num_scored: 10,
        };
        Findings {
            drift: Drift { num_positions: 5, num_logits: 50, same_top: 1.0, ..Drift::default() },
            num_chats: 2,
            same_replies: 2,
            promises_equality: true,
            figures: vec![
                figure("MMLU", TaskKind::LetterChoice, "acc", 30.0),
                figure("LAMBADA", TaskKind::LastWord, "acc", 40.0),
                figure("LAMBADA", TaskKind::LastWord, "perplexity", 20.0),
                figure("WikiText2", TaskKind::Perplexity, "perplexity", 10.0),
            ],
        }
    }

    fn all_limits() -> Budget {
        Budget {
            max_mmlu_drop: Some(1.0),
            max_lambada_drop: Some(1.0),
            max_perplexity_rise: Some(1.0),
            max_kl: Some(0.1),
        }
    }

    /// Whether the certificate is refused, and what for.
    fn refused(budget: Budget, promises_equality: bool, change: impl Fn(&mut Findings)) -> String {
        let mut findings = Findings { promises_equality, ..unchanged() };
        change(&mut findings);
        broken(&checks(&budget, &findings)).unwrap_or_default()
    }

    #[test]
    fn every_part_of_a_promised_equality_can_break_it() {
        assert_eq!(refused(Budget::default(), true, |_| ()), "");
        for (change, expected) in [
            ((|f| f.drift.num_differing = 1) as fn(&mut Findings), "logits"),
            (|f| f.drift.num_logits = 0, "logits"),
            (|f| f.same_replies = 1, "greedy replies"),
            (|f| (f.num_chats, f.same_replies) = (0, 0), "greedy replies"),
            (|f| f.figures[0].gem = 40.0, "scores: found not MMLU"),
            (|f| f.figures[3].gem = f64::NAN, "scores: found not WikiText2"),
        ] {
            let found = refused(Budget::default(), true, change);
            assert!(found.contains(expected), "{expected}: {found}");
            // What changes the chat promises none of it.
            assert_eq!(refused(Budget::default(), false, change), "");
        }
    }

    #[test]
    fn every_limit_can_be_exceeded_and_is_where_nothing_was_measured() {
        assert_eq!(refused(all_limits(), false, |_| ()), "");
        let within = |f: &mut Findings| {
            f.drift.mean_kl = 0.1;
            (f.figures[0].gem, f.figures[1].gem, f.figures[2].gem, f.figures[3].gem) = (29.0, 39.0, 99.0, 10.1 - 1e-9);
        };
        assert_eq!(refused(all_limits(), false, within), "");
        for (change, expected) in [
            ((|f| f.drift.mean_kl = 0.11) as fn(&mut Findings), "mean KL"),
            (|f| f.drift.mean_kl = f64::NAN, "mean KL"),
            (|f| f.figures[0].gem = 28.9, "MMLU"),
            (|f| f.figures[1].gem = 38.9, "LAMBADA"),
            (|f| f.figures[3].gem = 10.2, "WikiText2"),
            (|f| f.figures[3].gem = f64::INFINITY, "WikiText2"),
            (|f| f.figures[3].gem = f64::NAN, "WikiText2"),
            (|f| f.figures.retain(|f| f.kind != TaskKind::LetterChoice), "MMLU: found not measured"),
            (|f| f.figures.retain(|f| f.kind != TaskKind::LastWord), "LAMBADA: found not measured"),
            (|f| f.figures.retain(|f| f.kind != TaskKind::Perplexity), "perplexity: found not measured"),
        ] {
            let found = refused(all_limits(), false, change);
            assert!(found.contains(expected) && !found.contains(';'), "{expected}: {found}");
        }
    }

    #[test]
    fn without_a_promise_nothing_is_passed() {
        let findings = Findings { promises_equality: false, ..unchanged() };
        assert!(verdict(&checks(&Budget::default(), &findings)).starts_with("**Nothing was promised**"));
        assert!(verdict(&checks(&Budget::default(), &unchanged())).starts_with("**Within"));
    }
}
