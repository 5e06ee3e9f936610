//! Sets of ACPI tables, as an image of the memory in which they lie: one that describes QEMU's q35 as
//! it is, and for every number another one that does not, always the same.

use longshore_qemu::settings::ACPI_AT;

/// Room for one table, and for that with the longest list.
const SLOT: u64 = 0x1000;
const XSDT_ROOM: u64 = 3 * SLOT;
const HEADER: usize = 36;

/// Addresses that are not what a table may say they are.
const FREE_MEMORY: u64 = 0x0120_0000;
const IMAGE: u64 = 0x0010_0000;
const NOWHERE: u64 = 0xd800_0000;
const IO_APIC: u64 = 0xfec0_0000;
const LOCAL_APIC: u64 = 0xfee0_0000;
const HPET: u64 = 0xfed0_0000;
const ECAM: u64 = 0xb000_0000;
const UNIT: u64 = 0xfed9_0000;

/// Numbers that look like chance: xorshift64*, G. Marsaglia.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// A table but for its sum, which is made right when it is laid out, plus `off`.
struct Table {
    bytes: Vec<u8>,
    length: Option<u32>,
    off: u8,
}

impl Table {
    fn new(signature: &[u8; 4], revision: u8, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[..4].copy_from_slice(signature);
        bytes[8] = revision;
        bytes[10..28].copy_from_slice(b"LONGSHTESTSET ....");
        bytes.extend_from_slice(body);
        Self {
            bytes,
            length: None,
            off: 0,
        }
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset..end].copy_from_slice(bytes);
    }

    fn put32(&mut self, offset: usize, value: u32) {
        self.put(offset, &value.to_le_bytes());
    }

    fn put64(&mut self, offset: usize, value: u64) {
        self.put(offset, &value.to_le_bytes());
    }

    fn laid_out(&self, room: u64) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes.truncate(room as usize);
        if bytes.len() >= 8 {
            let length = self.length.unwrap_or(bytes.len() as u32);
            bytes[4..8].copy_from_slice(&length.to_le_bytes());
        }
        if bytes.len() > 9 {
            bytes[9] = 0;
            bytes[9] = self.off.wrapping_sub(sum(&bytes));
        }
        bytes
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

/// Where in [`Set::tables`] a table is, and so in memory.
#[derive(Clone, Copy)]
enum Which {
    Facp,
    Dsdt,
    Apic,
    Mcfg,
    Hpet,
    Srat,
    Dmar,
}

use Which::*;

const ALL: [Which; 7] = [Facp, Dsdt, Apic, Mcfg, Hpet, Srat, Dmar];

impl Which {
    fn at(self) -> u64 {
        slot(self as u64)
    }
}

/// The root pointer comes first, the root tables last.
fn slot(index: u64) -> u64 {
    ACPI_AT + (1 + index) * SLOT
}

const TABLES_MAX: u64 = 9;
const XSDT: u64 = ACPI_AT + (1 + TABLES_MAX) * SLOT;
const RSDT: u64 = XSDT + XSDT_ROOM;

/// All tables, before they are laid out.
struct Set {
    rsdp: Vec<u8>,
    rsdp_off: u8,
    /// Widths of 8 and 4 bytes.
    roots: [Table; 2],
    /// What they list.
    entries: Vec<u64>,
    tables: Vec<Table>,
}

fn io_apic(id: u8, address: u64, first_gsi: u32) -> Vec<u8> {
    let mut entry = vec![1, 12, id, 0];
    entry.extend((address as u32).to_le_bytes());
    entry.extend(first_gsi.to_le_bytes());
    entry
}

fn cpu(id: u8) -> [u8; 8] {
    [0, 8, id, id, 1, 0, 0, 0]
}

fn x2apic(id: u32) -> Vec<u8> {
    let mut entry = vec![9, 16, 0, 0];
    entry.extend(id.to_le_bytes());
    entry.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    entry
}

fn isa(source: u8, gsi: u32, flags: u8) -> Vec<u8> {
    let mut entry = vec![2, 10, 0, source];
    entry.extend(gsi.to_le_bytes());
    entry.extend([flags, 0]);
    entry
}

fn window(base: u64, segment: u16, first: u8, last: u8) -> Vec<u8> {
    let mut entry = base.to_le_bytes().to_vec();
    entry.extend(segment.to_le_bytes());
    entry.extend([first, last, 0, 0, 0, 0]);
    entry
}

fn memory(base: u64, len: u64, node: u32) -> Vec<u8> {
    let mut entry = vec![1, 40];
    entry.extend(node.to_le_bytes());
    entry.extend([0; 2]);
    entry.extend(base.to_le_bytes());
    entry.extend(len.to_le_bytes());
    entry.extend([0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    entry
}

/// A unit above everything, and the I/O APIC below it, as QEMU places them.
fn unit(base: u64) -> Vec<u8> {
    let mut entry = vec![0, 0, 24, 0, 1, 0, 0, 0];
    entry.extend(base.to_le_bytes());
    entry.extend([3, 8, 0, 0, 0, 0xff, 0, 0]);
    entry
}

/// Memory that the host bridge is to go on reaching.
fn reserved(base: u64, last: u64) -> Vec<u8> {
    let mut entry = vec![1, 0, 32, 0, 0, 0, 0, 0];
    entry.extend(base.to_le_bytes());
    entry.extend(last.to_le_bytes());
    entry.extend([1, 8, 0, 0, 0, 0, 0, 0]);
    entry
}

fn madt(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut body = (LOCAL_APIC as u32).to_le_bytes().to_vec();
    body.extend([1, 0, 0, 0]);
    body.extend(entries.concat());
    body
}

impl Set {
    fn sound() -> Self {
        let mut facp = Table::new(b"FACP", 6, &[0; 240]);
        facp.put32(40, Dsdt.at() as u32);
        facp.put32(64, 0x604);
        facp.put32(76, 0x608);
        facp.put32(112, 1 << 10);
        facp.put(116, &[1, 8, 0, 1]);
        facp.put64(120, 0xcf9);
        facp.put(128, &[0xf]);
        facp.put64(140, Dsdt.at());
        let mut hpet = Table::new(b"HPET", 1, &[0; 20]);
        hpet.put32(36, 0x8086_a201);
        hpet.put64(44, HPET);
        let mut cpus = vec![cpu(0).to_vec(), cpu(1).to_vec()];
        cpus.push(io_apic(0, IO_APIC, 0));
        cpus.push(isa(0, 2, 0));
        cpus.push(isa(9, 9, 0xd));
        let near = |id: u8| vec![0, 16, 0, id, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let affinity = [vec![1, 0, 0, 0], vec![0; 8], near(0), near(1)];
        let affinity = [affinity.concat(), memory(0, 512 << 20, 0)].concat();
        let dmar = [vec![38, 1], vec![0; 10], unit(UNIT)].concat();
        Self {
            rsdp: Vec::new(),
            rsdp_off: 0,
            roots: [Table::new(b"XSDT", 1, &[]), Table::new(b"RSDT", 1, &[])],
            entries: ALL
                .iter()
                .filter(|which| !matches!(which, Dsdt))
                .map(|which| which.at())
                .collect(),
            tables: vec![
                facp,
                Table::new(b"DSDT", 2, b"\x08_S5_\x12\x06\x04\x00\x00\x00\x00"),
                Table::new(b"APIC", 3, &madt(&cpus)),
                Table::new(b"MCFG", 1, &[vec![0; 8], window(ECAM, 0, 0, 255)].concat()),
                hpet,
                Table::new(b"SRAT", 3, &affinity),
                Table::new(b"DMAR", 1, &dmar),
            ],
        }
        .with_rsdp(2, XSDT, RSDT as u32, 36)
    }

    fn with_rsdp(mut self, revision: u8, xsdt: u64, rsdt: u32, length: u32) -> Self {
        self.set_rsdp(revision, xsdt, rsdt, length);
        self
    }

    fn set_rsdp(&mut self, revision: u8, xsdt: u64, rsdt: u32, length: u32) {
        let mut rsdp = b"RSD PTR \0LONGSH".to_vec();
        rsdp.push(revision);
        rsdp.extend(rsdt.to_le_bytes());
        rsdp.extend(length.to_le_bytes());
        rsdp.extend(xsdt.to_le_bytes());
        rsdp.extend([0; 4]);
        self.rsdp = rsdp;
    }

    fn table(&mut self, which: Which) -> &mut Table {
        &mut self.tables[which as usize]
    }

    /// As the MADT's entries.
    fn madt(&mut self, entries: &[Vec<u8>]) {
        *self.table(Apic) = Table::new(b"APIC", 3, &madt(entries));
    }

    /// Entries after those that the MADT has.
    fn more_madt(&mut self, entries: &[Vec<u8>]) {
        self.table(Apic).bytes.extend(entries.concat());
    }

    /// In place of the one that there is.
    fn only_io_apic(&mut self, address: u64) {
        self.madt(&[
            cpu(0).into(),
            cpu(1).into(),
            io_apic(0, address, 0),
            isa(0, 2, 0),
        ]);
    }

    fn mcfg(&mut self, windows: &[Vec<u8>]) {
        *self.table(Mcfg) = Table::new(b"MCFG", 1, &[vec![0; 8], windows.concat()].concat());
    }

    fn dmar(&mut self, structures: &[Vec<u8>]) {
        let body = [vec![38, 1], vec![0; 10], structures.concat()].concat();
        *self.table(Dmar) = Table::new(b"DMAR", 1, &body);
    }

    fn another(&mut self, table: Table) -> u64 {
        self.tables.push(table);
        slot(self.tables.len() as u64 - 1)
    }

    /// The memory from [`ACPI_AT`] on.
    fn image(mut self) -> Vec<u8> {
        for (root, width) in self.roots.iter_mut().zip([8, 4]) {
            for entry in &self.entries {
                root.bytes.extend(&entry.to_le_bytes()[..width]);
            }
        }
        let mut rsdp = self.rsdp.clone();
        rsdp[8] = 0;
        rsdp[8] = self.rsdp_off.wrapping_sub(sum(&rsdp[..20]));
        rsdp[32] = 0;
        rsdp[32] = 0u8.wrapping_sub(sum(&rsdp));
        let mut image = vec![0; (RSDT + SLOT - ACPI_AT) as usize];
        let mut put = |at: u64, piece: &[u8]| {
            let at = (at - ACPI_AT) as usize;
            image[at..at + piece.len()].copy_from_slice(piece);
        };
        put(ACPI_AT, &rsdp);
        put(XSDT, &self.roots[0].laid_out(XSDT_ROOM));
        put(RSDT, &self.roots[1].laid_out(SLOT));
        for (table, index) in self.tables.iter().zip(0..TABLES_MAX) {
            put(slot(index), &table.laid_out(SLOT));
        }
        image
    }
}

/// A way in which a set makes no sense: what it is, and what the kernel says of it, if it is one thing.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) says: &'static str,
    /// That only a machine can show.
    pub(crate) on_machines: &'static str,
    make: fn(&mut Set, &mut Random),
}

const fn kind(name: &'static str, says: &'static str, make: fn(&mut Set, &mut Random)) -> Kind {
    let on_machines = says;
    Kind {
        name,
        says,
        on_machines,
        make,
    }
}

/// What the tables say may be so; the machine shows that it is not.
const fn shown(
    name: &'static str,
    on_machines: &'static str,
    make: fn(&mut Set, &mut Random),
) -> Kind {
    Kind {
        name,
        says: "",
        on_machines,
        make,
    }
}

const LENGTHS: [u32; 8] = [0, 1, 35, 37, 0x3fff, 0x7fff_ffff, 0xffff_ffff, 16 << 20];

pub(crate) const KINDS: &[Kind] = &[
    // The root pointer.
    kind(
        "a root pointer with a wrong sum",
        "no root pointer at 0x90000",
        |set, _| {
            set.rsdp_off = 1;
        },
    ),
    kind(
        "a root pointer of another kind",
        "no root pointer at 0x90000",
        |set, r| {
            set.rsdp[r.below(8)] ^= 0x20;
        },
    ),
    kind(
        "a root pointer of no bytes",
        "no root pointer at 0x90000",
        |set, _| {
            set.set_rsdp(2, XSDT, RSDT as u32, 0);
        },
    ),
    kind(
        "a root pointer without end",
        "no root pointer at 0x90000",
        |set, _| {
            set.set_rsdp(255, XSDT, RSDT as u32, u32::MAX);
        },
    ),
    kind(
        "an XSDT that is the root pointer",
        "bytes at 0x90000, no table",
        |set, _| {
            set.set_rsdp(2, ACPI_AT, RSDT as u32, 36);
        },
    ),
    kind(
        "an XSDT in free memory",
        "a table at 0x1200000, where none can be",
        |set, _| {
            set.set_rsdp(2, FREE_MEMORY, RSDT as u32, 36);
        },
    ),
    kind(
        "an XSDT at the end of all addresses",
        "where none can be",
        |set, r| {
            set.set_rsdp(2, u64::MAX - r.below(64) as u64, RSDT as u32, 36);
        },
    ),
    kind(
        "no root table at all",
        "no ACPI root table found",
        |set, _| {
            set.set_rsdp(2, XSDT + 16, 0, 36);
        },
    ),
    // Root tables.
    kind(
        "roots with wrong sums",
        "no ACPI root table found",
        |set, r| {
            set.roots
                .iter_mut()
                .for_each(|root| root.off = 1 + r.below(255) as u8);
        },
    ),
    kind(
        "roots of absurd lengths",
        "no ACPI root table found",
        |set, r| {
            let length = r.one_of(&[0, 1, 35, 0x7fff_ffff, 0xffff_ffff]);
            set.roots
                .iter_mut()
                .for_each(|root| root.length = Some(length));
        },
    ),
    kind("an XSDT that lists itself", "", |set, _| {
        set.entries.insert(0, XSDT);
        set.entries.push(XSDT);
    }),
    kind(
        "one table listed 600 times",
        "the table at 0x93000, listed twice",
        |set, _| {
            set.entries.extend([Apic.at(); 600]);
        },
    ),
    kind(
        "600 tables that are none",
        "more that make no sense",
        |set, r| {
            set.entries.splice(0..0, (0..600).map(|_| r.next()));
        },
    ),
    shown("roots that list nothing", "no MADT", |set, _| {
        set.entries.clear()
    }),
    kind("roots that list address 0", "", |set, _| {
        set.entries.iter_mut().for_each(|entry| *entry = 0);
    }),
    kind("half an entry at the end", "", |set, _| {
        set.roots
            .iter_mut()
            .for_each(|root| root.bytes.extend([0x5a; 3]));
    }),
    kind("tables where registers are", "", |set, _| {
        set.entries
            .extend([IO_APIC, HPET, LOCAL_APIC, ECAM, UNIT, 0xffff_fff0]);
    }),
    // Any table.
    kind(
        "a table with a wrong sum",
        "whose sum is wrong",
        |set, r| {
            set.table(r.one_of(&ALL)).off = 1 + r.below(255) as u8;
        },
    ),
    kind("a table of an absurd length", "", |set, r| {
        set.table(r.one_of(&ALL)).length = Some(r.one_of(&LENGTHS));
    }),
    kind("a table cut short", "", |set, r| {
        let table = set.table(r.one_of(&ALL));
        table
            .bytes
            .truncate(HEADER + r.below(table.bytes.len() - HEADER));
    }),
    kind("a table of zeros", "", |set, r| {
        set.table(r.one_of(&ALL)).bytes[HEADER..].fill(0);
    }),
    kind("a table of ones", "", |set, r| {
        set.table(r.one_of(&ALL)).bytes[HEADER..].fill(0xff);
    }),
    kind("a table of noise", "", |set, r| {
        let table = set.table(r.one_of(&ALL));
        let bytes = table.bytes[HEADER..].iter_mut();
        bytes.for_each(|byte| *byte = r.next() as u8);
    }),
    kind("tables with a few other bytes", "", |set, r| {
        for _ in 0..1 + r.below(24) {
            let table = set.table(r.one_of(&ALL));
            let at = HEADER + r.below(table.bytes.len() - HEADER);
            table.bytes[at] = r.next() as u8;
        }
    }),
    kind("tables of other names", "", |set, r| {
        let table = set.table(r.one_of(&ALL));
        let name = r.one_of(&[
            *b"APIC", *b"FACP", *b"MCFG", *b"HPET", *b"SRAT", *b"DMAR", [0; 4],
        ]);
        table.put(0, &name);
    }),
    kind("two MADTs", "a second table APIC", |set, _| {
        let second = Table::new(b"APIC", 3, &madt(&[io_apic(0, FREE_MEMORY, 0)]));
        let at = set.another(second);
        set.entries.push(at);
    }),
    // CPUs and interrupt controllers.
    kind("no CPUs", "", |set, _| {
        set.madt(&[io_apic(0, IO_APIC, 0)]);
    }),
    kind("not the CPU that boots", "", |set, _| {
        set.madt(&[cpu(1).into(), io_apic(0, IO_APIC, 0)]);
    }),
    kind("CPUs twice, and everybody", "", |set, _| {
        set.more_madt(&[
            cpu(0).into(),
            cpu(1).into(),
            cpu(0xff).into(),
            x2apic(u32::MAX),
        ]);
    }),
    shown("a CPU that is not there", "does not start", |set, r| {
        set.more_madt(&[x2apic(256 + r.below(1 << 20) as u32)]);
    }),
    kind("an entry of no length", "", |set, r| {
        set.madt(&[
            cpu(0).into(),
            vec![r.next() as u8, r.below(2) as u8],
            cpu(1).into(),
        ]);
    }),
    kind("an I/O APIC at 0", "an I/O APIC at 0x0", |set, _| {
        set.only_io_apic(0)
    }),
    kind(
        "an I/O APIC in free memory",
        "an I/O APIC at 0x1200000",
        |set, _| {
            set.only_io_apic(FREE_MEMORY);
        },
    ),
    kind(
        "an I/O APIC in the image",
        "an I/O APIC at 0x100000",
        |set, _| {
            set.only_io_apic(IMAGE);
        },
    ),
    kind(
        "an I/O APIC at no boundary",
        "an I/O APIC at 0xfec00",
        |set, r| {
            set.only_io_apic(IO_APIC + 1 + r.below(1023) as u64);
        },
    ),
    kind(
        "an I/O APIC that is the local one",
        "an I/O APIC at 0xfee00000",
        |set, _| {
            set.only_io_apic(LOCAL_APIC);
        },
    ),
    shown(
        "an I/O APIC nowhere",
        "no I/O APIC at 0xd8000000",
        |set, _| {
            set.only_io_apic(NOWHERE);
        },
    ),
    shown(
        "an I/O APIC that is a timer",
        "no I/O APIC at 0xfed00000",
        |set, _| {
            set.only_io_apic(HPET);
        },
    ),
    kind(
        "I/O APICs with the same inputs",
        "an I/O APIC at 0xfec00000",
        |set, _| {
            set.more_madt(&[io_apic(1, IO_APIC, 0), io_apic(2, IO_APIC, 4)]);
        },
    ),
    kind("I/O APICs beyond number", "", |set, _| {
        let many = (0..300).map(|n| io_apic(n as u8, IO_APIC + 4096 * (n & 15), 24 * n as u32));
        set.madt(&[vec![cpu(0).to_vec(), cpu(1).to_vec()], many.collect()].concat());
    }),
    kind("inputs that nobody has", "", |set, r| {
        let gsis = [u32::MAX, u32::MAX - 23, 24, 1 << 31];
        let overrides: Vec<_> = (0..40).map(|n| isa(n, r.one_of(&gsis), 0xf)).collect();
        set.madt(
            &[
                vec![cpu(0).to_vec(), io_apic(0, IO_APIC, u32::MAX - 5)],
                overrides,
            ]
            .concat(),
        );
    }),
    // Configuration space.
    kind(
        "configuration space in memory",
        "configuration space at 0x10000000",
        |set, _| {
            set.mcfg(&[window(0x1000_0000, 0, 0, 255)]);
        },
    ),
    kind(
        "configuration space over all registers",
        "configuration space at 0xf0000000",
        |set, _| {
            set.mcfg(&[window(0xf000_0000, 0, 0, 255)]);
        },
    ),
    shown(
        "configuration space nowhere",
        "no configuration space at 0xd0000000",
        |set, _| {
            set.mcfg(&[window(0xd000_0000, 0, 0, 127)]);
        },
    ),
    shown(
        "configuration space off by a bus",
        "no configuration space at 0xb0100000",
        |set, _| {
            set.mcfg(&[window(ECAM + (1 << 20), 0, 0, 254)]);
        },
    ),
    kind("configuration space beyond all addresses", "", |set, _| {
        set.mcfg(&[
            window(1 << 50, 0, 0, 255),
            window(u64::MAX << 20, 1, 0, 255),
        ]);
    }),
    kind(
        "configuration space twice",
        "configuration space at 0xb0000000",
        |set, _| {
            set.mcfg(&[
                window(ECAM, 0, 0, 255),
                window(ECAM, 1, 0, 255),
                window(ECAM, 0, 16, 31),
            ]);
        },
    ),
    kind("a segment of which there is nothing", "", |set, _| {
        set.mcfg(&[window(ECAM, 0, 0, 255), window(0xd000_0000, 7, 0, 127)]);
    }),
    kind("windows without sense", "", |set, _| {
        set.mcfg(&[
            window(ECAM, 0, 9, 3),
            window(ECAM + 7, 0, 0, 255),
            window(0, 0, 0, 255),
        ]);
    }),
    // Nodes.
    kind("absurd nodes", "", |set, r| {
        let table = set.table(Srat);
        for _ in 0..90 {
            table
                .bytes
                .extend(memory(r.next(), r.next(), r.next() as u32));
        }
        table.bytes.extend(memory(0, u64::MAX, u32::MAX));
        table
            .bytes
            .extend([0, 16, 0xff, 0, 1, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    }),
    // Timers and power.
    kind("an HPET at 0", "an HPET at 0x0", |set, _| {
        set.table(Hpet).put64(44, 0)
    }),
    kind(
        "an HPET in free memory",
        "an HPET at 0x1200000",
        |set, _| {
            set.table(Hpet).put64(44, FREE_MEMORY);
        },
    ),
    kind("an HPET at no boundary", "an HPET at 0xfed00", |set, r| {
        set.table(Hpet).put64(44, HPET + 1 + r.below(1023) as u64);
    }),
    shown("an HPET nowhere", "no HPET at 0xd8000000", |set, _| {
        set.table(Hpet).put64(44, NOWHERE);
    }),
    shown(
        "an HPET that is an I/O APIC",
        "no HPET at 0xfec00000",
        |set, _| {
            set.table(Hpet).put64(44, IO_APIC);
        },
    ),
    shown(
        "a timer that is none",
        "ACPI PM timer: does not keep time",
        |set, r| {
            set.table(Hpet).put64(44, 0);
            set.table(Facp)
                .put32(76, r.one_of(&[0x40, 0x70, 0x4321, 0xffff]));
        },
    ),
    kind(
        "a DSDT that is the XSDT",
        "bytes at 0x9a000, no table",
        |set, _| {
            set.table(Facp).put32(40, XSDT as u32);
            set.table(Facp).put64(140, XSDT);
        },
    ),
    kind(
        "a DSDT in free memory",
        "a table at 0x1200000, where none can be",
        |set, _| {
            set.table(Facp).put64(140, FREE_MEMORY);
        },
    ),
    kind("ports that are none", "", |set, r| {
        for offset in [64, 68, 76] {
            set.table(Facp).put32(offset, r.next() as u32);
        }
        set.table(Facp).put64(120, r.next());
    }),
    // Remapping units.
    shown("a unit in free memory", "unit at 0x1200000", |set, _| {
        set.dmar(&[unit(FREE_MEMORY)]);
    }),
    shown("a unit nowhere", "unit at 0xd8000000", |set, _| {
        set.dmar(&[unit(NOWHERE)])
    }),
    shown(
        "a unit that is an I/O APIC",
        "unit at 0xfec00000",
        |set, _| {
            set.dmar(&[unit(IO_APIC)]);
        },
    ),
    kind(
        "all memory reserved for a device",
        "reserved memory 0x0-0xfffffffffffff",
        |set, _| {
            set.dmar(&[unit(UNIT), reserved(0, (1 << 52) - 1)]);
        },
    ),
    kind(
        "the kernel's memory reserved",
        "reserved memory 0x1200000-0x1200fff",
        |set, _| {
            set.dmar(&[unit(UNIT), reserved(FREE_MEMORY, FREE_MEMORY + 0xfff)]);
        },
    ),
    shown(
        "scopes that lead nowhere",
        "ACPI table DMAR, at",
        |set, r| {
            let mut bad = unit(UNIT);
            bad[17] = r.one_of(&[0, 1, 7, 9, 255]);
            set.dmar(&[bad, vec![0; 40]]);
        },
    ),
];

/// The set of this number: the first ones are of one kind each, later ones of two. A number says the
/// same set again.
pub(crate) fn set(number: usize) -> (&'static Kind, Vec<u8>) {
    let mut random = Random::new(number as u64 + 1);
    let kind = &KINDS[number % KINDS.len()];
    let mut set = Set::sound();
    if number >= 2 * KINDS.len() {
        let other = &KINDS[random.below(KINDS.len())];
        (other.make)(&mut set, &mut random);
    }
    (kind.make)(&mut set, &mut random);
    (kind, set.image())
}

/// A set that describes the machine as it is.
pub(crate) fn sound() -> Vec<u8> {
    Set::sound().image()
}

/// The same by the tables that the first revision had.
pub(crate) fn first_revision() -> Vec<u8> {
    Set::sound().with_rsdp(0, 0, RSDT as u32, 0).image()
}
