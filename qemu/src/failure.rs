//! What ends the launcher early: one clear line for a person and an exit status for scripts.

use std::fmt;

/// Why the launcher gives up.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// Exit status: 2 for a wrong request, 1 for a right one that failed.
    pub status: u8,
    /// One line; empty where another program has printed it already.
    pub message: String,
}

impl Failure {
    /// The request is wrong or cannot be served: status 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            status: 2,
            message: message.into(),
        }
    }

    /// The request was right, and failed: status 1.
    pub fn run(message: impl Into<String>) -> Self {
        Self {
            status: 1,
            message: message.into(),
        }
    }

    /// Another program has said why; only its status is left to pass on.
    pub fn told(status: u8) -> Self {
        Self {
            status,
            message: String::new(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Puts what was attempted before a system error.
pub trait Context<T> {
    /// `WHAT: ERROR`, as a failure with status 1.
    fn context(self, what: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::run(format!("{what}: {error}")))
    }
}
