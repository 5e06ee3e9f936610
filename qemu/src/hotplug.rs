//! `hot-remove`, `hot-add` and `yank` on the machine that runs.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::control::{self, Verb};
use crate::failure::{Context, Failure};
use crate::machine::{engine_device, engine_id, port_id};
use crate::qmp::Qmp;
use crate::run_dir::RunDir;
use crate::settings::{Chipset, Irq, Settings};

/// The guest has 5 s to change its mind after the button, and its own time to let go.
const REMOVAL_LIMIT: Duration = Duration::from_secs(30);

/// Ways in which an engine vanishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Its process is killed: reads give ones, the slot sees nothing.
    Kill,
    /// The slot cuts its power and tells of a presence change.
    Power,
    /// It answers all reads with ones and still counts accesses.
    AllOnes,
    /// It stops in the middle of what it does, and answers nothing any more.
    Freeze,
}

/// A running machine, as seen from another process.
pub struct Running {
    run_dir: RunDir,
    settings: Settings,
    engine: u32,
    qmp: Qmp,
}

impl Running {
    /// Connects to the machine in `run_dir`; `device` is `DEV=`.
    pub fn find(run_dir: &RunDir, device: &str) -> Result<Self, Failure> {
        let none = || {
            Failure::run(format!(
                "no machine runs in {}: see `make run`",
                run_dir.path().display()
            ))
        };
        let settings = std::fs::read(run_dir.settings()).map_err(|_| none())?;
        let settings: Settings = serde_json::from_slice(&settings)
            .context(format!("{}", run_dir.settings().display()))?;
        let engine = control::parse_engine(device).filter(|engine| *engine < settings.engines);
        let engine = engine.ok_or_else(|| {
            Failure::usage(format!(
                "DEV={device}: wants ioatN, one of {}",
                settings.engines
            ))
        })?;
        if std::os::unix::net::UnixStream::connect(run_dir.qmp()).is_err() {
            return Err(none());
        }
        let qmp = Qmp::connect(&run_dir.qmp(), Duration::from_secs(10))?;
        Ok(Self {
            run_dir: run_dir.clone(),
            settings,
            engine,
            qmp,
        })
    }

    /// Presses the attention button and waits until the guest has let go; gives the seconds it took.
    pub fn remove(&mut self) -> Result<f64, Failure> {
        self.refuse_slotless("removal")?;
        self.refuse_msix("removal")?;
        let id = engine_id(self.engine);
        let start = Instant::now();
        self.qmp.execute("device_del", json!({ "id": id }))?;
        let deleted = self.qmp.await_event(REMOVAL_LIMIT, |event, data| {
            event == "DEVICE_DELETED" && data["device"] == id.as_str()
        })?;
        if !deleted {
            return Err(Failure::run(format!(
                "the guest has not let go of {id} within {} s",
                REMOVAL_LIMIT.as_secs()
            )));
        }
        control::ask(&self.run_dir.control(), Verb::End, self.engine)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Puts a new engine into the port of the one that was removed.
    pub fn add(&mut self) -> Result<(), Failure> {
        self.refuse_slotless("addition")?;
        let id = engine_id(self.engine);
        if self.is_plugged()? {
            return Err(Failure::run(format!("{id} is in its slot already")));
        }
        control::ask(&self.run_dir.control(), Verb::Start, self.engine)?;
        let socket = self.run_dir.engine_socket(self.engine);
        let device = engine_device(&self.settings, self.engine, &socket);
        self.qmp.execute("device_add", device)?;
        Ok(())
    }

    /// Lets the engine vanish.
    pub fn yank(&mut self, how: How) -> Result<(), Failure> {
        match how {
            How::Kill => {
                // QEMU 11.1 ends itself where a process dies with messages that it has not read. So
                // the machine stands still while this one dies, and sends none.
                self.qmp.execute("stop", json!({}))?;
                let killed = control::ask(&self.run_dir.control(), Verb::Kill, self.engine);
                self.qmp.execute("cont", json!({}))?;
                killed
            }
            How::AllOnes => control::ask(&self.run_dir.control(), Verb::AllOnes, self.engine),
            How::Freeze => control::ask(&self.run_dir.control(), Verb::Freeze, self.engine),
            How::Power => {
                self.refuse_slotless("HOW=power")?;
                self.refuse_msix("HOW=power")?;
                let id = engine_id(self.engine);
                if !self.is_plugged()? {
                    return Err(Failure::run(format!("{id} is not in its slot")));
                }
                self.cut_power()?;
                let deleted = self
                    .qmp
                    .await_event(Duration::from_secs(5), |event, data| {
                        event == "DEVICE_DELETED" && data["device"] == id.as_str()
                    })?;
                if !deleted {
                    return Err(Failure::run(format!(
                        "{id} is still there with its power off"
                    )));
                }
                control::ask(&self.run_dir.control(), Verb::End, self.engine)
            }
        }
    }

    /// QEMU itself would end: an assertion about the MSI-X tables of a device that leaves.
    fn refuse_msix(&self, what: &str) -> Result<(), Failure> {
        match self.settings.irq {
            Irq::Msix => Err(Failure::usage(format!(
                "{what} is refused with IRQ=msix, because QEMU would crash: run with IRQ=msi"
            ))),
            Irq::Msi | Irq::Intx => Ok(()),
        }
    }

    fn refuse_slotless(&self, what: &str) -> Result<(), Failure> {
        let how = match (self.settings.chipset, self.settings.root) {
            (Chipset::Q35, false) => return Ok(()),
            (Chipset::Q35, true) => "WHERE=root",
            (Chipset::I440fx, _) => "MACHINE=pc",
        };
        Err(Failure::usage(format!(
            "{what} is refused with {how}, where engines have no slot: see `pci remove`"
        )))
    }

    fn is_plugged(&mut self) -> Result<bool, Failure> {
        let list = self
            .qmp
            .execute("qom-list", json!({ "path": "/machine/peripheral" }))?;
        let id = engine_id(self.engine);
        Ok(list
            .as_array()
            .is_some_and(|list| list.iter().any(|item| item["name"] == id.as_str())))
    }

    /// Switches the slot's power controller and power indicator off by the port's own registers,
    /// as software would (PCI Express Base Specification, Slot Control Register).
    fn cut_power(&mut self) -> Result<(), Failure> {
        const CAP_POINTER: u8 = 0x34;
        const PCI_EXPRESS: u32 = 0x10;
        const SLOT_CONTROL: u8 = 0x18;
        const POWER_INDICATOR_OFF: u32 = 0b11 << 8;
        const POWER_OFF: u32 = 1 << 10;
        let port = port_id(self.engine);
        let buses = self.qmp.execute("query-pci", json!({}))?;
        let port = find_device(&buses, &port)
            .ok_or_else(|| Failure::run(format!("QEMU does not know {port}")))?;
        let mut cap = self.config_read(port, CAP_POINTER)? as u8 & !3;
        // As many steps as the space has room for: a list that loops ends too.
        for _ in 0..48 {
            if cap == 0 {
                break;
            }
            let header = self.config_read(port, cap)?;
            if header & 0xff == PCI_EXPRESS {
                let register = cap.wrapping_add(SLOT_CONTROL);
                let control = self.config_read(port, register)? & 0xffff;
                self.select(port, register)?;
                let off = control | POWER_INDICATOR_OFF | POWER_OFF;
                self.qmp.monitor(&format!("o/h 0xcfc {off:#x}"))?;
                return Ok(());
            }
            cap = (header >> 8) as u8 & !3;
        }
        Err(Failure::run("the port has no PCI Express capability"))
    }

    /// Points the configuration mechanism's address port at a register.
    fn select(
        &mut self,
        (bus, device, function): (u8, u8, u8),
        register: u8,
    ) -> Result<(), Failure> {
        let address = 0x8000_0000
            | u32::from(bus) << 16
            | u32::from(device) << 11
            | u32::from(function) << 8
            | u32::from(register & !3);
        self.qmp
            .monitor(&format!("o/w 0xcf8 {address:#x}"))
            .map(drop)
    }

    fn config_read(&mut self, port: (u8, u8, u8), register: u8) -> Result<u32, Failure> {
        self.select(port, register)?;
        let reply = self.qmp.monitor("i/xw 0xcfc")?;
        parse_port_read(&reply)
            .ok_or_else(|| Failure::run(format!("QEMU's monitor answers {reply:?} to a port read")))
    }
}

/// `portl[0x0cfc] = 0x29c01af4`
fn parse_port_read(reply: &str) -> Option<u32> {
    let value = reply.rsplit_once('=')?.1.trim();
    u32::from_str_radix(value.strip_prefix("0x")?, 16).ok()
}

/// Where a device of this id stands, from `query-pci`.
fn find_device(buses: &Value, id: &str) -> Option<(u8, u8, u8)> {
    let devices = buses
        .as_array()?
        .iter()
        .filter_map(|bus| bus["devices"].as_array())
        .flatten();
    for device in devices {
        if device["qdev_id"] == id {
            let number = |name: &str| device[name].as_u64().and_then(|n| u8::try_from(n).ok());
            return Some((number("bus")?, number("slot")?, number("function")?));
        }
        let behind = &device["pci_bridge"]["devices"];
        if let Some(found) = find_device(&json!([{ "devices": behind }]), id) {
            return Some(found);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_found_behind_bridges_too() {
        let buses = json!([{ "bus": 0, "devices": [
            { "qdev_id": "", "bus": 0, "slot": 0, "function": 0 },
            { "qdev_id": "up", "bus": 0, "slot": 1, "function": 0, "pci_bridge": { "devices": [
                { "qdev_id": "port0", "bus": 1, "slot": 2, "function": 3 } ] } } ] }]);
        assert_eq!(find_device(&buses, "up"), Some((0, 1, 0)));
        assert_eq!(find_device(&buses, "port0"), Some((1, 2, 3)));
        assert_eq!(find_device(&buses, "port9"), None);
        assert_eq!(find_device(&json!({}), "port0"), None);
    }

    #[test]
    fn the_monitors_port_reads_are_understood() {
        assert_eq!(
            parse_port_read("portl[0x0cfc] = 0x29c01af4"),
            Some(0x29c0_1af4)
        );
        assert_eq!(parse_port_read("unknown command"), None);
    }

    #[test]
    fn without_a_machine_it_is_said() {
        let failure = Running::find(&RunDir::new("/nonexistent"), "ioat0")
            .err()
            .unwrap();
        assert!(failure.message.contains("no machine runs"), "{failure}");
    }
}
