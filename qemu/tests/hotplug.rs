//! The launcher's hold on engines of a machine that runs: vanishing, refusals, coming back.
//! What the kernel makes of it is tested where the kernel does something about it.

#![forbid(unsafe_code)]

use longshore_qemu::scenario::{Bench, Machine};

fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"))
}

/// Runs a subcommand on a machine; gives its exit status and all that it said.
fn on(machine: &Machine, subcommand: &str, variables: &[(&str, &str)]) -> (Option<i32>, String) {
    bench().on(machine, subcommand, variables)
}

#[test]
fn engines_vanish_in_every_way_and_come_back() {
    let mut machine = bench().start(&[("ANSWER", "1000")]);
    machine.await_prompt();
    let ok = |machine: &Machine, subcommand: &str, variables: &[(&str, &str)], said: &str| {
        let (status, text) = on(machine, subcommand, variables);
        assert_eq!(status, Some(0), "{subcommand} {variables:?}: {text}");
        assert!(text.contains(said), "{text}");
    };
    ok(
        &machine,
        "yank",
        &[("DEV", "ioat0"), ("HOW", "allones")],
        "ioat0 yanked (allones)",
    );
    ok(
        &machine,
        "yank",
        &[("DEV", "ioat0"), ("HOW", "power")],
        "ioat0 yanked (power)",
    );
    assert!(machine.run_dir().engine_stats(0).is_file());
    let (status, text) = on(&machine, "yank", &[("DEV", "ioat0"), ("HOW", "power")]);
    assert!(
        status == Some(1) && text.contains("not in its slot"),
        "{text}"
    );
    ok(&machine, "hot-add", &[("DEV", "ioat0")], "ioat0 added");
    ok(
        &machine,
        "yank",
        &[("DEV", "ioat0"), ("HOW", "freeze")],
        "ioat0 yanked (freeze)",
    );
    let (status, text) = on(&machine, "hot-add", &[("DEV", "ioat0")]);
    assert!(status == Some(1) && text.contains("already"), "{text}");
    ok(
        &machine,
        "yank",
        &[("DEV", "ioat1"), ("HOW", "kill")],
        "ioat1 yanked (kill)",
    );
    let (status, text) = on(&machine, "yank", &[("DEV", "ioat1"), ("HOW", "kill")]);
    assert!(status == Some(1) && text.contains("does not run"), "{text}");
}

#[test]
fn what_would_crash_qemu_or_makes_no_sense_is_refused() {
    let mut machine = bench().start(&[("IRQ", "msix")]);
    machine.await_prompt();
    for (subcommand, variables, said) in [
        ("hot-remove", &[("DEV", "ioat0")][..], "IRQ=msix"),
        ("yank", &[("HOW", "power")], "IRQ=msix"),
        ("yank", &[("HOW", "gently")], "HOW=gently"),
        ("hot-remove", &[("DEV", "ioat2")], "DEV=ioat2"),
        ("hot-add", &[("DEV", "eth0")], "DEV=eth0"),
    ] {
        let (status, text) = on(&machine, subcommand, variables);
        assert_eq!(status, Some(2), "{subcommand} {variables:?}: {text}");
        assert!(
            text.contains(said) && text.trim_end().lines().count() == 1,
            "{text}"
        );
    }
}

#[test]
fn without_a_machine_it_is_said() {
    for subcommand in ["hot-remove", "hot-add", "yank"] {
        let output = bench()
            .launcher(subcommand, &[("RUN_DIR", "/nonexistent")])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("no machine runs"));
    }
}

#[test]
fn the_tour_ends_well() {
    let run_dir = std::env::temp_dir().join(format!("longshore-demo-{}", std::process::id()));
    let output = bench()
        .launcher("demo", &[])
        .env("RUN_DIR", &run_dir)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("Nothing was lost"), "{text}");
    for line in text.lines().filter(|line| line.contains("hot: ")) {
        assert!(line.ends_with("lost=0"), "{line}");
    }
    let _ = std::fs::remove_dir_all(run_dir);
}
