//! Which channel a client gets: by what it can do, or by a name that stands for one.
//!
//! A name is looked up with the firmware first, as far as the machine has such a [`Lookup`], then
//! in the [`Mapping`]s that were added. The three ways in which a request may come to nothing are
//! told apart: no such name ([`RequestError::NoChannel`]), a channel whose device is not there yet
//! ([`RequestError::Defer`]), one that another client has ([`RequestError::Busy`]).

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use spin::Mutex;

use crate::capability::Capabilities;
use crate::chan::DmaChan;
use crate::channel::Channel;
use crate::client::Client;
use crate::life::RequestError;
use crate::registry::Registry;

/// A channel, by its provider and its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// [`crate::DeviceInfo::provider`].
    pub provider: String,
    /// The number of the channel in its device.
    pub channel: usize,
}

/// What a client calls a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The client's name.
    pub client: String,
    /// The channel's name with that client, such as `tx`.
    pub name: String,
    /// The channel.
    pub place: Place,
}

/// A source of names, such as the machine's firmware.
pub trait Lookup: Send + Sync {
    /// The channel that `client` means by `name`, if it says.
    fn find(&self, client: &str, name: &str) -> Option<Place>;
}

/// The names of a registry.
#[derive(Default)]
pub(crate) struct Names {
    firmware: Mutex<Option<Box<dyn Lookup>>>,
    mappings: Mutex<Vec<Mapping>>,
}

impl Names {
    fn find(&self, client: &str, name: &str) -> Option<Place> {
        let firmware = self.firmware.lock();
        if let Some(place) = firmware.as_ref().and_then(|names| names.find(client, name)) {
            return Some(place);
        }
        let mappings = self.mappings.lock();
        let means = |mapping: &&Mapping| mapping.client == client && mapping.name == name;
        mappings.iter().find(means).map(|found| found.place.clone())
    }
}

impl Registry {
    /// Requests the first channel that can do all of `capabilities` and is free.
    pub async fn request(&self, capabilities: Capabilities) -> Result<Channel, RequestError> {
        self.request_matching(&Client::default(), capabilities, |_| true)
            .await
    }

    /// Requests the first channel that can do all of `capabilities`, that `filter` likes and that
    /// is free, for `client` alone. Where none is free, the error is that of the last one tried.
    pub async fn request_matching(
        &self,
        client: &Client,
        capabilities: Capabilities,
        filter: impl Fn(&DmaChan) -> bool,
    ) -> Result<Channel, RequestError> {
        let mut error = RequestError::NoChannel;
        for chan in self.channels() {
            if !chan.info().capabilities.contains(capabilities) || !filter(&chan) {
                continue;
            }
            match chan.request_for(client).await {
                Ok(channel) => return Ok(channel),
                Err(other) => error = other,
            }
        }
        Err(error)
    }

    /// Requests the channel that `client` calls `name`, for it alone.
    pub async fn request_named(
        &self,
        client: &Client,
        name: &str,
    ) -> Result<Channel, RequestError> {
        let place = self.names().find(client.name(), name);
        let Place { provider, channel } = place.ok_or(RequestError::NoChannel)?;
        let devices = self.devices();
        let device = devices
            .iter()
            .find(|device| device.info().provider == provider);
        let chan = device.ok_or(RequestError::Defer)?.channels().nth(channel);
        chan.ok_or(RequestError::NoChannel)?
            .request_for(client)
            .await
    }

    /// As [`Registry::request_named`], but waits for a device that is not there yet.
    pub async fn await_named(&self, client: &Client, name: &str) -> Result<Channel, RequestError> {
        loop {
            let seen = self.arrivals();
            match self.request_named(client, name).await {
                Err(RequestError::Defer) => self.arrival_after(seen).await,
                other => return other,
            }
        }
    }

    /// Adds a name. The first of several that a client has for the same name counts.
    pub fn add_mapping(&self, mapping: Mapping) {
        self.names().mappings.lock().push(mapping);
    }

    /// Asks `firmware` for names from now on, before the mappings.
    pub fn set_lookup(&self, firmware: impl Lookup + 'static) {
        let before = self.names().firmware.lock().replace(Box::new(firmware));
        drop(before);
    }
}
