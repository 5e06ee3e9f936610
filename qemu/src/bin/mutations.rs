//! `make mutants`, its second half: changes to the source that no tool makes, one by one, each of
//! which some test must notice.
//!
//! The list is a text file, a line a change:
//!
//! ```text
//! HOW TEST ;; FILE ;; FROM ;; TO
//! ```
//!
//! HOW is `host`, `bare` (as `host`, without the package's features), `loom` or `miri`; TEST a part of the name of the test that must fail. FROM must
//! occur exactly once in FILE, so that the list cannot rot; white space of any kind and length is
//! one blank in it. Lines that start with `#` are comments, and `package NAME DIRECTORY` says where
//! the files of the lines after it are. Every test of such a package whose name starts like a row's
//! (`s1_2_`) must be in the list.
//!
//! All happens in a copy of the tree under the target directory. Arguments choose lines that
//! contain one of them.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// A test that takes longer hangs, which is a failure as well.
const LIMIT: Duration = Duration::from_secs(120);
const NIGHTLY: &str = "MUTANTS_NIGHTLY";

struct Mutation {
    line: usize,
    how: How,
    test: String,
    package: String,
    file: PathBuf,
    from: String,
    to: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum How {
    Host,
    Bare,
    Loom,
    Miri,
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Passed(BTreeSet<String>),
    Failed,
    Hung,
    DoesNotBuild(String),
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mutations: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool, String> {
    let mut arguments = std::env::args().skip(1);
    let list = arguments.next().ok_or("which list?")?;
    let chosen: Vec<String> = arguments.collect();
    let text = read(Path::new(&list))?;
    let (packages, mut mutations) = parse(&text).map_err(|error| format!("{list}:{error}"))?;
    for mutation in &mutations {
        let source = read(&mutation.file)?;
        apply(&source, mutation).map_err(|error| format!("{list}:{}: {error}", mutation.line))?;
    }
    for (_, directory) in &packages {
        check_rows(Path::new(directory), &mutations)?;
    }
    let is_chosen = |mutation: &Mutation| {
        let line = text.lines().nth(mutation.line - 1).unwrap_or_default();
        chosen.is_empty() || chosen.iter().any(|word| line.contains(word.as_str()))
    };
    mutations.retain(is_chosen);
    let tree = Tree::new()?;
    check_baseline(&tree, &mutations)?;
    let mut survivors = Vec::new();
    for mutation in &mutations {
        let source = read(&mutation.file)?;
        let file = tree.root.join(&mutation.file);
        write(&file, &apply(&source, mutation)?)?;
        let begin = Instant::now();
        let outcome = tree.test(mutation.how, &mutation.package, &[&mutation.test]);
        write(&file, &source)?;
        let verdict = match outcome? {
            Outcome::Failed => "caught",
            Outcome::Hung => "caught, it hung",
            Outcome::Passed(_) => {
                survivors.push(mutation);
                "SURVIVED"
            }
            Outcome::DoesNotBuild(why) => {
                return Err(format!("{list}:{}: does not build:\n{why}", mutation.line));
            }
        };
        println!("{verdict} ({:.0?}): {}", begin.elapsed(), name(mutation));
    }
    let (caught, survived) = (mutations.len() - survivors.len(), survivors.len());
    println!("mutations: {caught} caught, {survived} survived");
    for mutation in &survivors {
        println!("  {list}:{}: {}", mutation.line, name(mutation));
    }
    Ok(survivors.is_empty())
}

fn name(mutation: &Mutation) -> String {
    let Mutation {
        test,
        file,
        from,
        to,
        ..
    } = mutation;
    format!("{test}: {}: `{from}` -> `{to}`", file.display())
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

type List = (Vec<(String, String)>, Vec<Mutation>);

fn parse(text: &str) -> Result<List, String> {
    let mut packages = Vec::new();
    let mut mutations = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line_number = at + 1;
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |what: &str| format!("{line_number}: {what}");
        if let Some(package) = line.strip_prefix("package ") {
            let (name, directory) = package
                .split_once(' ')
                .ok_or_else(|| wrong("a package without a directory"))?;
            packages.push((name.to_string(), directory.to_string()));
            continue;
        }
        let (package, directory) = packages
            .last()
            .ok_or_else(|| wrong("no package before it"))?;
        let fields: Vec<_> = line.split(" ;; ").map(str::trim).collect();
        let [test, file, from, to] = fields[..] else {
            // A removal has nothing after the last separator.
            return Err(wrong("expected HOW TEST ;; FILE ;; FROM ;; TO"));
        };
        let (how, test) = test
            .split_once(' ')
            .ok_or_else(|| wrong("expected HOW TEST"))?;
        let how = match how {
            "host" => How::Host,
            "bare" => How::Bare,
            "loom" => How::Loom,
            "miri" => How::Miri,
            _ => return Err(wrong("expected host, bare, loom or miri")),
        };
        mutations.push(Mutation {
            line: line_number,
            how,
            test: test.trim().to_string(),
            package: package.clone(),
            file: Path::new(directory).join(file),
            from: from.to_string(),
            to: if to == "-" {
                String::new()
            } else {
                to.to_string()
            },
        });
    }
    Ok((packages, mutations))
}

/// `source` with the mutation in it. White space is as good as any other white space.
fn apply(source: &str, mutation: &Mutation) -> Result<String, String> {
    let found: Vec<_> = source
        .char_indices()
        .filter_map(|(at, _)| match_at(&source[at..], &mutation.from).map(|len| (at, at + len)))
        .collect();
    match found[..] {
        [(start, end)] => Ok(format!(
            "{}{}{}",
            &source[..start],
            mutation.to,
            &source[end..]
        )),
        _ => Err(format!(
            "found {} times in {}: {}",
            found.len(),
            mutation.file.display(),
            mutation.from
        )),
    }
}

/// How many bytes at the start of `text` are `pattern`.
fn match_at(text: &str, pattern: &str) -> Option<usize> {
    let mut rest = text;
    for (i, word) in pattern.split_whitespace().enumerate() {
        if i > 0 {
            let trimmed = rest.trim_start();
            if trimmed.len() == rest.len() {
                return None;
            }
            rest = trimmed;
        }
        rest = rest.strip_prefix(word)?;
    }
    Some(text.len() - rest.len())
}

/// Every test that is named after a row has a mutation.
fn check_rows(directory: &Path, mutations: &[Mutation]) -> Result<(), String> {
    let mut missing = Vec::new();
    for folder in ["src", "tests"] {
        let folder = directory.join(folder);
        if folder.exists() {
            rows_without(&folder, mutations, &mut missing)?;
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "no mutation for these tests: {}",
        missing.join(", ")
    ))
}

fn rows_without(
    folder: &Path,
    mutations: &[Mutation],
    missing: &mut Vec<String>,
) -> Result<(), String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            rows_without(&path, mutations, missing)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = read(&path)?;
            let names = text.lines().filter_map(|line| {
                let function = line.trim_start().strip_prefix("fn ")?;
                let name = function.split('(').next()?;
                let row = name.strip_prefix('s')?;
                let digits = row.trim_start_matches(|c: char| c.is_ascii_digit());
                let is_row = digits.len() < row.len() && digits.starts_with('_');
                is_row.then_some(name)
            });
            let covered = |name: &str| mutations.iter().any(|m| name.contains(m.test.as_str()));
            missing.extend(names.filter(|name| !covered(name)).map(String::from));
        }
    }
    Ok(())
}

/// All tests of the list exist and pass without a mutation.
fn check_baseline(tree: &Tree, mutations: &[Mutation]) -> Result<(), String> {
    let groups: BTreeSet<_> = mutations
        .iter()
        .map(|mutation| (mutation.how, mutation.package.as_str()))
        .collect();
    for (how, package) in groups {
        let of_group = mutations
            .iter()
            .filter(|mutation| mutation.how == how && mutation.package == package);
        let tests: BTreeSet<_> = of_group.map(|mutation| mutation.test.as_str()).collect();
        let names: Vec<_> = tests.iter().copied().collect();
        let passed = match tree.test(how, package, &names)? {
            Outcome::Passed(passed) => passed,
            other => {
                return Err(format!("{package}, {how:?}, without a mutation: {other:?}"));
            }
        };
        let is_there = |test: &&str| passed.iter().any(|name| name.contains(*test));
        if let Some(test) = tests.iter().find(|test| !is_there(test)) {
            return Err(format!("{package}, {how:?}: there is no test {test}"));
        }
    }
    Ok(())
}

/// A copy of the tree, and where it is built.
struct Tree {
    root: PathBuf,
    target: PathBuf,
}

impl Tree {
    /// Files that have not changed are left as they are, so that little is built again.
    fn new() -> Result<Self, String> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
        let target = target.join("mutations");
        let root = target.join("tree");
        fs::create_dir_all(&root).map_err(|error| format!("{}: {error}", root.display()))?;
        let absolute = |path: &Path| {
            fs::canonicalize(path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let tree = Self {
            root: absolute(&root)?,
            target: absolute(&target)?,
        };
        let listed = Command::new("git")
            .args(["ls-files", "-co", "--exclude-standard"])
            .output()
            .map_err(|error| format!("git: {error}"))?;
        for file in String::from_utf8_lossy(&listed.stdout).lines() {
            let (from, to) = (Path::new(file), tree.root.join(file));
            let Ok(new) = fs::read(from) else { continue };
            if fs::read(&to).is_ok_and(|old| old == new) {
                continue;
            }
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).map_err(|error| error.to_string())?;
            }
            fs::write(&to, new).map_err(|error| format!("{}: {error}", to.display()))?;
        }
        Ok(tree)
    }

    fn cargo(&self, how: How, package: &str) -> Result<Command, String> {
        let mut command = Command::new("cargo");
        let target = match how {
            How::Host | How::Bare => "host",
            How::Loom => "loom",
            How::Miri => "miri",
        };
        if how == How::Miri {
            let nightly = std::env::var(NIGHTLY).map_err(|_| format!("{NIGHTLY} is not set"))?;
            command.args([&format!("+{nightly}"), "miri"]);
            let flags = "-Zmiri-strict-provenance -Zmiri-ignore-leaks";
            command.env("MIRIFLAGS", flags);
        }
        command
            .current_dir(&self.root)
            .args(["test", "--color=never", "--lib", "-p", package])
            .env("CARGO_TARGET_DIR", self.target.join(target))
            // Built often and run once.
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "0")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_INCREMENTAL", "1")
            .env("LOOM_MAX_PREEMPTIONS", "3");
        if how == How::Bare {
            command.arg("--no-default-features");
        }
        if how == How::Loom {
            command.env("RUSTFLAGS", "--cfg loom");
        } else {
            command.env("RUSTFLAGS", "-Awarnings");
        }
        Ok(command)
    }

    fn test(&self, how: How, package: &str, tests: &[&str]) -> Result<Outcome, String> {
        let io = |error: std::io::Error| format!("cargo: {error}");
        let mut build = self.cargo(how, package)?;
        let built = build.args(["--quiet", "--no-run"]).output().map_err(io)?;
        if !built.status.success() {
            let why = String::from_utf8_lossy(&built.stderr).into_owned();
            return Ok(Outcome::DoesNotBuild(why));
        }
        let mut run = self.cargo(how, package)?;
        let mut child = run
            .arg("--")
            .args(tests)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(io)?;
        let stdout = child.stdout.take();
        let reader = thread::spawn(move || {
            let mut text = String::new();
            // What is no text fails no test.
            let _ = stdout.map(|mut stdout| stdout.read_to_string(&mut text));
            text
        });
        // Miri starts slowly.
        let limit = if how == How::Miri { LIMIT * 5 } else { LIMIT };
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(io)? {
                break status;
            }
            if Instant::now() > deadline {
                // cargo and the test.
                let group = Pid::from_child(&child);
                kill_process_group(group, Signal::KILL).map_err(|error| error.to_string())?;
                child.wait().map_err(io)?;
                return Ok(Outcome::Hung);
            }
            thread::sleep(Duration::from_millis(20));
        };
        let text = reader.join().unwrap_or_default();
        if !status.success() {
            return Ok(Outcome::Failed);
        }
        let passed = |line: &str| {
            let name = line.strip_prefix("test ")?.strip_suffix(" ... ok")?;
            Some(name.to_string())
        };
        Ok(Outcome::Passed(text.lines().filter_map(passed).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutation(from: &str, to: &str) -> Mutation {
        Mutation {
            line: 1,
            how: How::Host,
            test: String::new(),
            package: String::new(),
            file: PathBuf::new(),
            from: from.into(),
            to: to.into(),
        }
    }

    #[test]
    fn white_space_does_not_matter_and_once_is_once() {
        let source = "a(b,\n    c);\nd(b, c);\n";
        let applied = apply(source, &mutation("a(b, c)", "x")).unwrap();
        assert_eq!(applied, "x;\nd(b, c);\n");
        assert!(apply(source, &mutation("(b, c)", "x")).is_err(), "twice");
        assert!(apply(source, &mutation("ab", "x")).is_err(), "never");
    }

    #[test]
    fn lists_are_read_line_by_line() {
        let text = "# why\npackage p dir\nhost s1_2_x ;; src/a.rs ;; a || b ;; -\n";
        let (packages, mutations) = parse(text).unwrap();
        assert_eq!(packages, [("p".into(), "dir".into())]);
        assert_eq!(mutations[0].file, Path::new("dir/src/a.rs"));
        assert_eq!((mutations[0].line, mutations[0].to.as_str()), (3, ""));
        assert!(parse("host x ;; f ;; a ;; b").is_err(), "no package");
        assert!(parse("package p d\nhost x ;; f ;; a").is_err());
        assert!(parse("package p d\ncold x ;; f ;; a ;; b").is_err());
    }
}
