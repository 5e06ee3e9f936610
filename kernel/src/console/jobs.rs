//! Commands in the background.

use alloc::string::String;
use alloc::vec::Vec;

use spin::Mutex;

use super::commands::CommandResult;
use crate::task;

struct Job {
    number: usize,
    text: String,
    /// Dropping it stops the command.
    _task: alloc::boxed::Box<dyn core::any::Any + Send>,
}

static JOBS: Mutex<Vec<Job>> = Mutex::new(Vec::new());

/// Runs `command` in the background and says under which number.
pub fn start(
    text: String,
    command: impl core::future::Future<Output = CommandResult> + Send + 'static,
) -> usize {
    let mut jobs = JOBS.lock();
    let number = (1..)
        .find(|n| jobs.iter().all(|job| job.number != *n))
        .unwrap_or(usize::MAX);
    let name = alloc::format!("job {number}: {text}");
    let shown = text.clone();
    let task = task::spawn(&name, None, async move {
        let result = command.await;
        match result {
            Ok(()) => crate::println!("[{number}] ok: {shown}"),
            Err(what) => crate::println!("[{number}] error: {shown}: {what}"),
        }
        // Outside the lock: the entry holds this very task.
        let gone = {
            let mut jobs = JOBS.lock();
            let at = jobs.iter().position(|job| job.number == number);
            at.map(|at| jobs.remove(at))
        };
        drop(gone);
    });
    jobs.push(Job {
        number,
        text,
        _task: alloc::boxed::Box::new(task),
    });
    number
}

/// Number and text of each.
pub fn list() -> Vec<(usize, String)> {
    JOBS.lock()
        .iter()
        .map(|job| (job.number, job.text.clone()))
        .collect()
}

/// Stops number `number`; says whether there was one.
pub fn stop(number: usize) -> bool {
    let gone = {
        let mut jobs = JOBS.lock();
        let at = jobs.iter().position(|job| job.number == number);
        at.map(|at| jobs.remove(at))
    };
    gone.is_some()
}
