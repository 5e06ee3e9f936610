//! Clients and their channels: hooks, names, sharing.

use alloc::string::{String, ToString};
use std::vec;

use super::*;
use crate::life::{Hold, Sharing};
use crate::{Capabilities, Client, Lookup, Mapping, Place, RequestError, StartError};

fn one(registry: &Registry) -> (Arc<Mock>, crate::DmaChan) {
    let mock = Mock::eager(8);
    let device = device(registry, core::slice::from_ref(&mock));
    let chan = device.channels().next().unwrap();
    (mock, chan)
}

fn trace(mock: &Mock) -> Vec<String> {
    mock.state.lock().trace.clone()
}

const REFUSED: StartError = StartError::NotReady {
    status: 1,
    errors: 2,
};

#[test]
fn s3_1_s3_2_hooks_come_inside_allocation_and_release() {
    let registry = Registry::new();
    let (mock, chan) = one(&registry);
    let channel = block_on(chan.request_for(&Client::new("net"))).unwrap();
    let submitted = copy(&channel, 64);
    channel.issue_pending();
    block_on(submitted.finish()).result.unwrap();
    block_on(channel.release());
    assert_eq!(
        trace(&mock),
        ["alloc net", "set net", "submit", "release net", "free"],
        "S3.5: a client is set before its first operation; S3.9: allocation knows the client"
    );
}

#[test]
fn s3_3_a_refused_client_is_rolled_back() {
    let registry = Registry::new();
    let (mock, chan) = one(&registry);
    mock.state.lock().refuse_client = Some(REFUSED);
    let error = block_on(chan.request_for(&Client::new("net"))).unwrap_err();
    assert_eq!(error, RequestError::Bind(REFUSED));
    assert_eq!(chan.clients(), 0);
    await_that("the stop", || !chan.is_running());
    assert_eq!(
        trace(&mock),
        ["alloc net", "set net", "free"],
        "who was not set is not released"
    );
    mock.state.lock().refuse_client = None;
    assert!(block_on(chan.request_for(&Client::new("net"))).is_ok());
}

#[test]
fn s3_4_hooks_are_optional() {
    // The CPU's channel has none.
    let registry = Registry::new();
    let channel = block_on(registry.cpu().share_for(&Client::new("net"))).unwrap();
    assert_eq!(registry.cpu().clients(), 1);
    block_on(channel.release());
    assert_eq!(registry.cpu().clients(), 0);
}

#[test]
fn s3_5_power_is_on_before_the_first_operation_and_off_after_the_last() {
    let registry = Registry::new();
    let (mock, chan) = one(&registry);
    let first = block_on(chan.share_for(&Client::new("a"))).unwrap();
    let second = block_on(chan.share_for(&Client::new("b"))).unwrap();
    drop(copy(&second, 64));
    block_on(first.release());
    drop(copy(&second, 64));
    second.issue_pending();
    block_on(second.release());
    await_that("the stop", || !chan.is_running());
    // What a power domain would count: never without a client while something is submitted.
    let mut power = 0;
    for line in trace(&mock) {
        match line.split(' ').next() {
            Some("set") => power += 1,
            Some("release") => power -= 1,
            Some("submit") => assert!(power > 0, "{:?}", trace(&mock)),
            Some("free") => assert_eq!(power, 0, "{:?}", trace(&mock)),
            _ => {}
        }
    }
}

#[test]
fn s3_7_each_client_of_a_shared_channel_is_set_and_released() {
    let registry = Registry::new();
    let (mock, chan) = one(&registry);
    let names = ["a", "b", "c"];
    let clients: Vec<_> = names
        .iter()
        .map(|name| block_on(chan.share_for(&Client::new(name))).unwrap())
        .collect();
    let listed: Vec<_> = chan
        .client_names()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(listed, names, "S3.8");
    for client in clients {
        block_on(client.release());
    }
    let trace = trace(&mock);
    let count = |what: &str| trace.iter().filter(|line| line.starts_with(what)).count();
    assert_eq!(
        (
            count("alloc"),
            count("set"),
            count("release"),
            count("free")
        ),
        (1, 3, 3, 1)
    );
}

#[test]
fn who_goes_while_its_provider_is_told_of_it_is_released() {
    let registry = Registry::new();
    let (mock, chan) = one(&registry);
    let first = block_on(chan.share()).unwrap();
    let client = Client::new("brief");
    for turns in 0..mock::times(3000) {
        let brief = Hold::join(&chan.inner, &client, Sharing::Shared).unwrap();
        (0..turns % 200).for_each(|_| std::hint::spin_loop());
        drop(brief);
    }
    block_on(first.release());
    let trace = trace(&mock);
    let times = |what: &str| trace.iter().filter(|line| *line == what).count();
    assert_eq!(times("set brief"), times("release brief"));
}

#[test]
fn s3_7_a_channel_is_shared_or_exclusive() {
    let registry = Registry::new();
    let (_mock, chan) = one(&registry);
    let shared = block_on(chan.share()).unwrap();
    assert_eq!(block_on(chan.request()).unwrap_err(), RequestError::Busy);
    assert!(block_on(chan.share()).is_ok());
    block_on(shared.release());
    let exclusive = block_on(chan.request()).unwrap();
    assert_eq!(block_on(chan.share()).unwrap_err(), RequestError::Busy);
    drop(exclusive);
}

#[test]
fn s3_10_no_such_name_not_there_yet_and_busy_are_told_apart() {
    struct Firmware;
    impl Lookup for Firmware {
        fn find(&self, client: &str, name: &str) -> Option<Place> {
            (client == "net" && name == "rx").then(|| Place {
                provider: "mock".into(),
                channel: 1,
            })
        }
    }
    let registry = Registry::new();
    registry.set_lookup(Firmware);
    for (client, name, channel) in [("net", "tx", 0), ("net", "rx", 0), ("net", "far", 9)] {
        registry.add_mapping(Mapping {
            client: client.into(),
            name: name.into(),
            place: Place {
                provider: "mock".into(),
                channel,
            },
        });
    }
    let net = Client::new("net");
    let request = |name: &str| block_on(registry.request_named(&net, name));
    assert_eq!(request("tx").unwrap_err(), RequestError::Defer);
    assert_eq!(request("what").unwrap_err(), RequestError::NoChannel);
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| block_on(registry.await_named(&net, "tx")));
        device(&registry, &[Mock::new(2), Mock::new(2)]);
        waiting.join().unwrap().unwrap()
    });
    assert_eq!(waiting.name(), "dma0chan0");
    assert_eq!(request("tx").unwrap_err(), RequestError::Busy);
    assert_eq!(request("far").unwrap_err(), RequestError::NoChannel);
    assert_eq!(
        request("rx").unwrap().name(),
        "dma0chan1",
        "the firmware comes first"
    );
    let other = Client::new("disk");
    let error = block_on(registry.request_named(&other, "tx")).unwrap_err();
    assert_eq!(
        error,
        RequestError::NoChannel,
        "names are each client's own"
    );
    let texts: Vec<_> = [
        RequestError::NoChannel,
        RequestError::Defer,
        RequestError::Busy,
    ]
    .iter()
    .map(ToString::to_string)
    .collect();
    assert_eq!(texts.len(), 3);
    assert!(texts[0] != texts[1] && texts[1] != texts[2] && texts[0] != texts[2]);
}

#[test]
fn s3_10_requests_by_capability_take_a_filter() {
    let registry = Registry::new();
    device(&registry, &[Mock::new(1), Mock::new(1)]);
    let client = Client::new("net");
    let by_name = |wanted: &'static str| {
        block_on(
            registry.request_matching(&client, Capabilities::MEMCPY, move |chan| {
                chan.name() == wanted
            }),
        )
    };
    let second = by_name("dma0chan1").unwrap();
    assert_eq!(second.name(), "dma0chan1");
    assert_eq!(by_name("dma0chan1").unwrap_err(), RequestError::Busy);
    assert_eq!(by_name("other").unwrap_err(), RequestError::NoChannel);
}

#[test]
fn s3_11_a_release_that_leaves_others_is_warned_of_and_goes_on() {
    let registry = Registry::new();
    let (mock, chan) = one(&registry);
    let warnings = crate::mock::warnings();
    let exclusive = block_on(chan.request()).unwrap();
    let before = warnings.about(chan.name());
    // What only a mistake of this layer's could bring about.
    let forced = chan.inner.life.force(&chan.inner, &Client::new("forced"));
    drop(exclusive);
    assert_eq!(warnings.about(chan.name()), before + 1);
    assert_eq!(chan.clients(), 1);
    drop(forced);
    await_that("the stop", || !chan.is_running());
    assert_eq!(mock.state.lock().stops, 1);
}

#[test]
#[cfg_attr(miri, ignore = "to read text takes Miri minutes")]
fn s3_6_nobody_is_called_a_slave() {
    let sources = concat!(
        include_str!("../provider.rs"),
        include_str!("../channel.rs"),
        include_str!("../chan.rs"),
        include_str!("../life.rs"),
        include_str!("../registry.rs"),
        include_str!("../request.rs"),
        include_str!("../lib.rs"),
    );
    assert!(!sources.to_lowercase().contains("slave"));
}

#[test]
fn hooks_are_called_for_late_clients_while_operations_run() {
    let registry = Registry::new();
    let (mock, chan) = one(&registry);
    let first = block_on(chan.share_for(&Client::new("a"))).unwrap();
    let interest = block_on(registry.get_interest());
    assert!(registry.find(crate::Transaction::Memcpy).is_some());
    let second = block_on(chan.share_for(&Client::new("b"))).unwrap();
    assert!(
        registry.find(crate::Transaction::Memcpy).is_some(),
        "a client that comes leaves the tables as they are"
    );
    drop((first, second, interest));
    await_that("the stop", || !chan.is_running());
    let sets = vec!["set a", "set public", "set b"];
    let trace = trace(&mock);
    let set: Vec<_> = trace
        .iter()
        .filter(|line| line.starts_with("set"))
        .collect();
    assert_eq!(set, sets);
}

#[test]
fn s0_11_a_channel_shows_its_clients_copies_and_bytes() {
    let registry = Registry::new();
    let (_mock, chan) = one(&registry);
    assert_eq!(
        chan.to_string(),
        "dma0chan0 clients=0 refs=0 copies=0 bytes=0 errors=0"
    );
    let clients = [
        block_on(chan.share()).unwrap(),
        block_on(chan.share()).unwrap(),
    ];
    let submitted = copy(&clients[0], 64);
    assert_eq!(
        chan.to_string(),
        "dma0chan0 clients=2 refs=1 copies=0 bytes=0 errors=0"
    );
    clients[1].issue_pending();
    block_on(submitted.finish()).result.unwrap();
    drop(clients);
    assert_eq!(
        chan.to_string(),
        "dma0chan0 clients=0 refs=0 copies=1 bytes=64 errors=0"
    );
}

#[test]
fn s3_9_allocation_knows_the_client_it_is_for() {
    let registry = Registry::new();
    let (mock, chan) = one(&registry);
    let first = block_on(chan.share_for(&Client::new("net"))).unwrap();
    let second = block_on(chan.share_for(&Client::new("disk"))).unwrap();
    drop((first, second));
    await_that("the stop", || !chan.is_running());
    let trace = trace(&mock);
    let allocated: Vec<_> = trace
        .iter()
        .filter(|line| line.starts_with("alloc"))
        .collect();
    assert_eq!(allocated, ["alloc net"], "for the first one, once");
}
