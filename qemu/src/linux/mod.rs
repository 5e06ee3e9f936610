//! A Linux kernel that we did not build, on engines that we did: Debian's, with its own ioatdma
//! driver.
//!
//! `qemu/linux/get-linux.sh` finds or fetches it; the first root file system is made here: busybox,
//! modules, and a script that loads them, does its errand, and turns the machine off.

pub mod cpio;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::child::{self, Spawner};
use crate::engines::Engines;
use crate::failure::{Context, Failure};
use crate::machine::{IOMMU_DEVICE, engine_device, port_id};
use crate::run_dir::RunDir;
use crate::settings::Settings;

/// What the machine does instead of starting Linux's usual programs. `MODULES` stands for the
/// commands that load them, `ENGINES` for the number of engines, `ERRAND` for what it is there for.
const INIT: &str = r#"#!/bin/busybox sh
B=/bin/busybox
$B mkdir -p /proc /sys
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
MODULES
settle() {
    for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        found=0
        for d in /sys/bus/pci/drivers/ioatdma/0*; do
            [ -e $d/dma ] && found=$((found + 1))
        done
        [ $found -ge ENGINES ] && break
        $B sleep 0.2
    done
}
settle
ERRAND
$B poweroff -f
"#;

/// Prints what has become of the engines, before and after unbinding and binding them, in lines
/// that begin with `engine:`.
const SHOW: &str = r#"
show() {
    for d in /sys/bus/pci/drivers/ioatdma/0*; do
        [ -e $d ] || continue
        echo "engine: $1 device ${d##*/} id=$($B cat $d/device)"
        g=$d/iommu_group
        [ -e $g ] && echo "engine: $1 group ${d##*/} type=$($B cat $g/type)"
        for c in $d/dma/*; do
            [ -e $c ] || continue
            q=$c/quickdata
            echo "engine: $1 channel ${c##*/} version=$($B cat $q/version) ring=$($B cat $q/ring_size) cap=$($B cat $q/cap)"
        done
    done
}
show first
$B grep ioat /proc/interrupts | while read -r line; do echo "engine: interrupt $line"; done
for d in /sys/bus/pci/drivers/ioatdma/0*; do
    [ -e $d ] || continue
    a=${d##*/}
    echo $a >/sys/bus/pci/drivers/ioatdma/unbind
    [ -e $d ] || echo "engine: unbound $a"
    echo $a >/sys/bus/pci/drivers/ioatdma/bind
done
settle
show again
echo "engine: done"
"#;

/// What Linux is booted for.
#[derive(Clone, Debug)]
pub struct Errand {
    /// Shell commands; `$B` is busybox.
    pub script: String,
    /// Modules to load after the kernel's own.
    pub modules: Vec<PathBuf>,
}

impl Errand {
    /// To show what its driver makes of the engines, twice, in lines that begin with `engine:`.
    pub fn show() -> Self {
        Self {
            script: SHOW.into(),
            modules: Vec::new(),
        }
    }
}

/// What a boot needs of the host.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    /// QEMU's program.
    pub qemu: &'a Path,
    /// The engine's program.
    pub engine: &'a Path,
    /// Starts both.
    pub spawner: &'a Spawner,
    /// Where their sockets, logs and statistics go.
    pub run_dir: &'a RunDir,
}

/// A kernel and what goes with it.
#[derive(Clone, Debug)]
pub struct Linux {
    folder: PathBuf,
}

impl Linux {
    /// Finds the kernel, or fetches it. The error is one line: why there is none.
    pub fn find(root: &Path) -> Result<Self, String> {
        let script = root.join("qemu/linux/get-linux.sh");
        let output = Command::new(&script)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("{}: {error}", script.display()))?;
        let last = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            text.trim_end()
                .lines()
                .last()
                .unwrap_or_default()
                .to_string()
        };
        if output.status.success() {
            Ok(Self {
                folder: last(&output.stdout).into(),
            })
        } else {
            Err(last(&output.stderr))
        }
    }

    /// The kernel's release.
    pub fn version(&self) -> String {
        let text = fs::read_to_string(self.folder.join("version")).unwrap_or_default();
        text.trim_end().to_string()
    }

    /// The first root file system, for a machine with this many engines.
    fn initramfs(&self, engines: u32, errand: &Errand) -> std::io::Result<Vec<u8>> {
        let mut archive = cpio::Archive::default();
        for directory in ["bin", "dev", "modules"] {
            archive.directory(directory);
        }
        archive.console("dev/console");
        archive.program("bin/busybox", &fs::read(self.folder.join("busybox"))?);
        let mut modules: Vec<PathBuf> = fs::read_dir(self.folder.join("modules"))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        modules.sort();
        modules.extend(errand.modules.iter().cloned());
        let mut load = String::new();
        for module in &modules {
            let name = module.file_name().map(OsStr::to_string_lossy);
            let name = format!("modules/{}", name.unwrap_or_default());
            archive.program(&name, &fs::read(module)?);
            load.push_str(&format!("$B insmod /{name}\n"));
        }
        let script = INIT
            .replace("MODULES", &load)
            .replace("ENGINES", &engines.to_string())
            .replace("ERRAND", &errand.script);
        archive.program("init", script.as_bytes());
        Ok(archive.finish())
    }

    /// Boots it on a machine with the engines of `settings`, until it has done its errand and turned
    /// itself off, or `patience` is over. Gives its console.
    pub fn boot(
        &self,
        host: Host<'_>,
        settings: &Settings,
        errand: &Errand,
        patience: Duration,
    ) -> Result<String, Failure> {
        let Host {
            qemu,
            engine,
            spawner,
            run_dir,
        } = host;
        run_dir.prepare()?;
        let initramfs = run_dir.path().join("initramfs");
        let archive = self
            .initramfs(settings.engines, errand)
            .context("initramfs")?;
        fs::write(&initramfs, archive).context(initramfs.display())?;
        let mut engines = Engines::new(spawner.clone(), engine, settings, run_dir);
        engines.start_all()?;
        let log = run_dir.path().join("linux.log");
        let console = File::create(&log).context(log.display())?;
        let mut machine = spawner
            .command(qemu)
            .args(self.arguments(settings, run_dir, &initramfs))
            .stdin(Stdio::null())
            .stdout(console.try_clone().context(log.display())?)
            .stderr(console)
            .spawn()
            .context("cannot start QEMU")?;
        let ended = child::wait_for(&mut machine, patience).context("QEMU")?;
        if ended.is_none() {
            let _ = child::end(&mut machine, Duration::from_secs(1));
        }
        engines.end_all();
        let text = fs::read(&log).context(log.display())?;
        let text = String::from_utf8_lossy(&text).replace('\r', "");
        if ended.is_none() {
            return Err(Failure::run(format!(
                "Linux has not turned itself off after {} s\n{text}",
                patience.as_secs()
            )));
        }
        Ok(text)
    }

    fn arguments(&self, settings: &Settings, run_dir: &RunDir, initramfs: &Path) -> Vec<String> {
        let mem = settings.mem_mib;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut args: Vec<String> = [
            "-no-user-config",
            "-nodefaults",
            "-no-reboot",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-machine",
            "q35,memory-backend=mem",
            "-accel",
            "tcg",
            "-cpu",
            "max",
        ]
        .map(String::from)
        .to_vec();
        args.extend(["-smp".into(), settings.cpus.to_string()]);
        args.extend(["-m".into(), format!("{mem}M")]);
        args.extend([
            "-object".into(),
            format!("memory-backend-memfd,id=mem,size={mem}M,share=on"),
        ]);
        args.extend(["-kernel".into(), text(&self.folder.join("vmlinuz"))]);
        args.extend(["-initrd".into(), text(initramfs)]);
        let mut append = String::from("console=ttyS0 panic=-1 loglevel=7 random.trust_cpu=on");
        if settings.iommu {
            append.push_str(" intel_iommu=on");
            args.extend(["-device".into(), IOMMU_DEVICE.into()]);
        }
        args.extend(["-append".into(), append]);
        for number in 0..settings.engines {
            let (id, slot) = (port_id(number), number + 1);
            args.extend([
                "-device".into(),
                format!("pcie-root-port,id={id},chassis={slot},slot={slot}"),
            ]);
            let device = engine_device(settings, number, &run_dir.engine_socket(number));
            args.extend(["-device".into(), device.to_string()]);
        }
        args
    }
}
