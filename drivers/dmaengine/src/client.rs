//! Who uses a channel.

use alloc::sync::Arc;
use core::fmt;

/// A client by its name, for the provider's hooks and for people. Cloning it gives the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    name: Arc<str>,
}

impl Client {
    /// A client of that name. Names need not be different.
    pub fn new(name: &str) -> Self {
        Self { name: name.into() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// A client without a name: `anonymous`.
impl Default for Client {
    fn default() -> Self {
        Self::new("anonymous")
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
