//! The benchmark, seconds of it, so that it cannot rot: what machines print is read, the engines'
//! counts agree with it, and the results are written. No rate is looked at.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use longshore_qemu::bench::{self, Place, plan::Plan};
use longshore_qemu::scenario::Bench;
use longshore_qemu::settings::Settings;
use serde_json::Value;

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn every_benchmark_runs_and_its_counts_agree_with_the_engines() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let out = Folder(std::env::temp_dir().join(format!("longshore-bench-{}", std::process::id())));
    let place = Place {
        root: root.canonicalize().expect("the repository"),
        launcher: env!("CARGO_BIN_EXE_longshore-qemu").into(),
        engine: root.join("build/ioat-model"),
        out: out.0.clone(),
    };
    let settings = Settings::default();
    let status =
        bench::run(&place, &settings, &Plan::tiny()).unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(status, 0, "counts that do not agree");
    let text = std::fs::read(place.results()).expect("results");
    let results: Value = serde_json::from_slice(&text).expect("JSON");
    let cases = |benchmark: &str| {
        let cases = results["cases"].as_array().expect("cases").iter();
        cases.filter(|case| case["benchmark"] == benchmark).count()
    };
    // Two sizes, two batches, by the engine polled and by interrupt, and by the CPU.
    assert_eq!(cases("copy"), 2 * 2 * 3);
    // 1, 2 and 4 CPUs, by the tables and by one count.
    assert_eq!(cases("find"), 3 * 2);
    // A task of the same CPU, and of another; three sets of buffers, on one CPU and on all; an
    // engine, and the CPU.
    assert_eq!((cases("wake"), cases("resv"), cases("pipeline")), (2, 6, 2));
    // An idle engine, and one whose ring is full.
    assert_eq!(cases("removal"), 2);
    // A page, and a large one; copies without an IOMMU, with it, and where mappings are kept.
    assert_eq!((cases("mapping"), cases("confined")), (2, 3));
    // Three that only their silence betrays, a link that goes down, a slot that is emptied.
    assert_eq!(cases("detection"), 5);
    assert!(results["checks_passed"].as_u64() > Some(20), "{results}");
    assert_eq!(results["systems"]["linux"]["missing"], "left out");
}

#[test]
fn absurd_parameters_are_refused_with_one_line() {
    let bad = [
        "bench jump",
        "bench copy sizes=0",
        "bench copy sizes=99999999999",
        "bench copy batches=0",
        "bench copy batches=513",
        "bench copy modes=slow",
        "bench copy via=dma9chan9",
        "bench copy channels=65",
        "bench buffers tickets=0",
        "bench buffers size=1048577",
        "bench removal size=0",
        "bench removal via=cpu",
        "bench copy channels=9 ms=1",
        "bench copy ms=",
        "bench copy ms=1 ms=1",
        "bench copy speed=1",
        "bench copy fast",
        "bench find pairs=-1",
        "bench find by=guess",
        "bench totals x=1",
    ];
    let good = "bench copy sizes=1,4097 batches=3 channels=2 ms=1";
    let machine = Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"));
    let ended = machine.run(&format!("{}; {good}; audit", bad.join("; ")), &[]);
    for command in bad {
        let lines = ended.output_of(command);
        assert!(
            lines.len() == 1 && lines[0].starts_with("error: "),
            "{command}: {lines:#?}"
        );
    }
    assert_eq!(ended.output_of(good).last(), Some(&"ok"), "{}", ended.all());
    assert_eq!(
        ended.output_of("audit").last(),
        Some(&"ok"),
        "{}",
        ended.all()
    );
}

#[test]
fn an_engine_that_fails_fails_the_benchmark() {
    let machine = Bench::new(env!("CARGO_BIN_EXE_longshore-qemu"));
    let command = "bench copy ms=5";
    let ended = machine.run(&format!("{command}; audit"), &[("FAULT", "error@20")]);
    let lines = ended.output_of(command);
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("error: dma0chan0: ")),
        "{lines:#?}"
    );
    assert_eq!(
        ended.output_of("audit").last(),
        Some(&"ok"),
        "{}",
        ended.all()
    );
}
