//! How long it takes until an engine that vanishes at its work is missed, and until what it had is
//! done elsewhere. By the host's clock, from the order to vanish to the line on the console: killing one
//! included, which QEMU has to stand still for.

use std::time::Instant;

use crate::bench::Place;
use crate::bench::line::Line;
use crate::failure::{Context, Failure};
use crate::hotplug::How;
use crate::qmp::Qmp;
use crate::run_dir::RunDir;
use crate::scenario::field;
use crate::session::{self, Session};

/// A way to vanish.
#[derive(Clone, Copy)]
enum Way {
    Yank(How),
    /// The port tells that the link went down, and nobody had asked for it.
    Link,
}

/// What tells of it: the engine's silence, the port's link, the slot's presence.
const WAYS: [(&str, Way); 5] = [
    ("kill", Way::Yank(How::Kill)),
    ("allones", Way::Yank(How::AllOnes)),
    ("freeze", Way::Yank(How::Freeze)),
    ("link", Way::Link),
    ("power", Way::Yank(How::Power)),
];

/// Boots with an engine for each way and one that stays, all at work, and has them vanish in turn.
pub fn measure(place: &Place) -> Result<Vec<Line>, Failure> {
    let place = session::Place {
        root: place.root.clone(),
        launcher: place.launcher.clone(),
        run_dir: RunDir::new(place.out.join("vanishing")),
    };
    let engines = (WAYS.len() + 1).to_string();
    let variables = [
        ("IOAT", engines.as_str()),
        ("CHANNELS", "1"),
        ("IRQ", "msi"),
        ("FAULT", "slow=20000"),
        ("ANSWER", "500"),
    ];
    let mut machine = Session::start(&place, &variables)?;
    machine.prompt()?;
    machine.command("dmatest iterations=0 threads_per_chan=4 timeout=60000 &")?;
    // All are at it.
    machine.command("dmatest iterations=1")?;
    let mut lines = Vec::new();
    for (engine, (name, way)) in WAYS.into_iter().enumerate() {
        let at = format!("hot: {:02x}:00.0", engine + 1);
        let start = Instant::now();
        let_vanish(&machine, engine, way)?;
        machine.await_text(&format!("{at} gone "))?;
        let known = start.elapsed().as_micros();
        machine.await_text(&format!("{at} detached "))?;
        let done = start.elapsed().as_micros();
        let mark = machine.mark_read();
        machine.await_text("\n")?;
        let hot = machine.since(mark);
        let count = |name| {
            let value = field(&hot, name);
            value.ok_or_else(|| Failure::run(format!("no {name} in {hot:?}")))
        };
        let text = format!(
            "detection how={name} known_us={known} us={done} inflight={} failed_over={} cpu={} lost={}",
            count("inflight")?,
            count("failed_over")?,
            count("cpu")?,
            count("lost")?,
        );
        lines.push(Line::parse(&text).map_err(Failure::run)?);
    }
    machine.command("stop 1")?;
    machine.power_off()?;
    Ok(lines)
}

fn let_vanish(machine: &Session, engine: usize, way: Way) -> Result<(), Failure> {
    match way {
        Way::Yank(how) => machine.running(&format!("ioat{engine}"))?.yank(how),
        Way::Link => {
            let mut qmp = Qmp::connect(&machine.run_dir().qmp(), session::PATIENCE)?;
            let said = qmp.monitor(&format!("pcie_aer_inject_error port{engine} SDN"))?;
            let done = said.starts_with("OK").then_some(());
            done.ok_or_else(|| Failure::run(said))
                .context("QEMU's monitor")
        }
    }
}
