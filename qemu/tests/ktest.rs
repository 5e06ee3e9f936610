//! The kernel's own test suites, one line a case as the Rust test harness prints them.
//!
//! The suites speak KTAP version 1 (Linux, Documentation/dev-tools/ktap.rst): suites are the outer
//! level, cases the indented one. A suite that ends early, by a panic or a hang, is a failure.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use longshore_qemu::scenario::Bench;

/// Images and machines that the suites run on.
const MACHINES: [(&str, &[(&str, &str)]); 4] = [
    ("longshore-test", &[("CPUS", "4"), ("MEM", "6G")]),
    ("longshore-test", &[("CPUS", "4"), ("IOMMU", "on")]),
    ("longshore-test", &[("CPUS", "1"), ("IRQ", "msix")]),
    ("longshore-nohotplug", &[("CPUS", "4")]),
];

/// What buffers that are shared stand on, the lowest first: each group can be run without the others.
const GROUPS: [&str; 3] = ["fences", "resv", "pipeline"];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    Failed,
    Skipped(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Case {
    name: String,
    verdict: Verdict,
}

fn main() -> ExitCode {
    // `cargo test NAME` and options are for other test programs; listing has nothing to list.
    if std::env::args().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    check_the_reader();
    let (mut passed, mut failed) = (0, 0);
    // The suites, in the order in which the first machine runs them.
    let mut order: Vec<String> = Vec::new();
    for (image, machine) in MACHINES {
        let shape = machine
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let name: Vec<_> = [image.into()].into_iter().chain(shape).collect();
        let kernel = format!("build/{image}.elf");
        let mut variables = vec![("KERNEL", kernel.as_str())];
        variables.extend(machine);
        let bench = Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"));
        let ended = bench.run("test", &variables);
        let output = ended
            .console
            .lines()
            .skip_while(|line| *line != "KTAP version 1");
        let (cases, whole) = read(output);
        if order.is_empty() {
            let suites = cases.iter().filter_map(|case| case.name.split_once("::"));
            order.extend(suites.map(|(suite, _)| suite.to_string()));
            order.dedup();
        }
        for case in &cases {
            let verdict = match &case.verdict {
                Verdict::Ok => "ok",
                Verdict::Failed => "FAILED",
                Verdict::Skipped(reason) => &format!("ok, not for this machine: {reason}"),
            };
            println!(
                "test ktest::{} [{}] ... {verdict}",
                case.name,
                name.join(" ")
            );
        }
        let bad = cases
            .iter()
            .filter(|case| case.verdict == Verdict::Failed)
            .count();
        // Cases that a machine cannot run are neither: another machine runs them.
        passed += cases
            .iter()
            .filter(|case| case.verdict == Verdict::Ok)
            .count();
        failed += bad;
        let healthy = ended.status == Some(0) && whole;
        if bad > 0 || !healthy {
            println!("{}", ended.all());
            failed += usize::from(bad == 0);
        }
    }
    let groups = s4_21_the_groups_run_by_themselves_and_in_order(&order);
    let verdict = if groups.is_ok() { "ok" } else { "FAILED" };
    println!("test ktest::s4_21_the_groups_run_by_themselves_and_in_order ... {verdict}");
    if let Err(why) = &groups {
        println!("{why}");
    }
    passed += usize::from(groups.is_ok());
    failed += usize::from(groups.is_err());
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Each group alone, on one machine; and all suites together, whose `order` is given, keep it.
fn s4_21_the_groups_run_by_themselves_and_in_order(order: &[String]) -> Result<(), String> {
    let together = order
        .iter()
        .filter(|suite| GROUPS.contains(&suite.as_str()));
    if !together.eq(GROUPS) {
        return Err(format!("all suites together: {order:?}"));
    }
    let bench = Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"));
    let commands = GROUPS.map(|group| format!("test {group}")).join("; ");
    let variables = [("KERNEL", "build/longshore-test.elf"), ("CPUS", "4")];
    let ended = bench.run(&commands, &variables);
    let lines: Vec<_> = ended.console.lines().collect();
    let alone = lines.split(|line| *line == "KTAP version 1").skip(1);
    let alone: Vec<_> = alone.map(|lines| read(lines.iter().copied())).collect();
    let suite = |(cases, whole): &(Vec<Case>, bool)| {
        let (suite, _) = cases.first()?.name.split_once("::")?;
        let of_it = |case: &Case| case.name.starts_with(suite) && case.verdict == Verdict::Ok;
        (*whole && cases.iter().all(of_it)).then(|| suite.to_string())
    };
    let suites: Vec<_> = alone.iter().map(suite).collect();
    let in_order = suites.iter().map(Option::as_deref).eq(GROUPS.map(Some));
    if in_order && ended.status == Some(0) {
        return Ok(());
    }
    Err(format!("{suites:?}\n{}", ended.all()))
}

/// Reads KTAP; false when the number of suites is not the announced one.
fn read<'a>(lines: impl Iterator<Item = &'a str>) -> (Vec<Case>, bool) {
    let (mut cases, mut suite, mut skip) = (Vec::new(), String::new(), None);
    let (mut planned, mut ended) = (None, 0);
    for line in lines {
        let (inner, text) = (line.starts_with("  "), line.trim());
        if let Some(name) = text.strip_prefix("# Subtest: ") {
            suite = name.into();
        } else if let Some(reason) = text.strip_prefix("# SKIP ") {
            skip = Some(reason.to_string());
        } else if let (false, Some(plan)) = (inner, text.strip_prefix("1..")) {
            planned = plan.parse().ok();
        } else if let Some((ok, name)) = result_line(text) {
            if !inner {
                ended += 1;
                continue;
            }
            let (name, inline) = match name.split_once(" # SKIP ") {
                Some((name, reason)) => (name, Some(reason.to_string())),
                None => (name, None),
            };
            let skipped = skip.take().or(inline);
            let verdict = match (ok, skipped) {
                (false, _) => Verdict::Failed,
                (true, Some(reason)) => Verdict::Skipped(reason),
                (true, None) => Verdict::Ok,
            };
            cases.push(Case {
                name: format!("{suite}::{name}"),
                verdict,
            });
        }
    }
    (cases, planned == Some(ended))
}

/// `ok 3 name` or `not ok 3 name`.
fn result_line(text: &str) -> Option<(bool, &str)> {
    let (ok, rest) = match text.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, text.strip_prefix("ok ")?),
    };
    let (number, name) = rest.split_once(' ')?;
    number.parse::<u32>().ok()?;
    Some((ok, name.trim_start_matches("- ")))
}

/// This program has no harness to test itself with.
fn check_the_reader() {
    let text = "KTAP version 1\n1..2\n  KTAP version 1\n  # Subtest: a\n  1..3\n  ok 1 x\n  # SKIP why\n  \
                ok 2 y\n  not ok 3 z\nnot ok 1 a\n  # Subtest: b\n  1..1\n  ok 1 w # SKIP why\nok 2 b";
    let case = |name: &str, verdict| Case {
        name: name.into(),
        verdict,
    };
    let skipped = || Verdict::Skipped("why".into());
    let expected = vec![
        case("a::x", Verdict::Ok),
        case("a::y", skipped()),
        case("a::z", Verdict::Failed),
        case("b::w", skipped()),
    ];
    assert_eq!(read(text.lines()), (expected, true));
    assert!(
        !read(text.lines().take(10)).1,
        "a suite is missing and nobody notices"
    );
}
