//! The messages DMA_READ and DMA_WRITE: what a vfio-user server asks of its client.
//!
//! The crate `vfio_user` answers commands and cannot send any (rust-vmm/vfio, issue 146). What it
//! lacks stands here, beside it, with nothing of this program in it. [`interpose`] puts itself between the client's connection and
//! the crate's server: one thread passes on what the client says, another what the server says,
//! each message whole and with its file descriptors. Between two messages of the server a
//! [`DmaRequester`] sends its own. The two directions number their commands independently; a
//! header's type tells a reply, and all of the client's replies are to us, as the server asks nothing.
//!
//! Memory: a message is copied once on its way. Any thread may ask; nobody may who holds something
//! that the client waits for, or both wait until [`ANSWER_LIMIT`] is over.
//!
//! vfio-user Protocol Specification, "Header", "VFIO_USER_DMA_READ" and "VFIO_USER_DMA_WRITE".

use std::collections::HashMap;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// For how long an answer is awaited, and the client's reading.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// What one request moves at most: what the crate's server tells the client of itself.
const LONGEST_TRANSFER: usize = 1 << 20;
/// A message longer than this is none.
const LONGEST_MESSAGE: usize = LONGEST_TRANSFER + 4096;
/// File descriptors that come with one message at most.
const MOST_FILES: usize = 16;

const HEADER: usize = 16;
/// Header, address and count: then follows the data.
const PREFIX: usize = HEADER + 16;

const DMA_READ: u16 = 11;
const DMA_WRITE: u16 = 12;

const TYPE: u32 = 0xf;
const COMMAND: u32 = 0;
const REPLY: u32 = 1;
const ERROR: u32 = 1 << 5;

/// Why a request moved nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestError {
    /// The client's answer is this error number.
    Refused(u32),
    /// There is no answer yet. It may be carried out still.
    Unanswered,
    /// There is no client any more, or it does not speak vfio-user.
    Closed,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(errno) => write!(f, "refused with error {errno}"),
            Self::Unanswered => f.write_str("not answered"),
            Self::Closed => f.write_str("no connection"),
        }
    }
}

impl std::error::Error for RequestError {}

/// Asks the client for accesses to its memory, by the addresses that the device knows. Clones ask
/// by the same connection, at the same time.
#[derive(Clone)]
pub(crate) struct DmaRequester(Arc<Connection>);

/// The client's connection, as its three users share it.
struct Connection {
    /// Held for as long as a message is written.
    to_client: Mutex<UnixStream>,
    calls: Mutex<Calls>,
}

/// Commands that are under way.
#[derive(Default)]
struct Calls {
    next: u16,
    /// By message identifier. One whose answer is not awaited any more stays until it comes, so that
    /// its number is not given to another.
    open: HashMap<u16, SyncSender<Message>>,
    closed: bool,
}

impl DmaRequester {
    /// Reads `data.len()` bytes at `address`.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) -> Result<(), RequestError> {
        for (part, at) in data.chunks_mut(LONGEST_TRANSFER).zip(0..) {
            let at = address.wrapping_add(at * LONGEST_TRANSFER as u64);
            let reply = self.request(DMA_READ, at, part.len(), &[])?;
            let Some(found) = reply.bytes.get(PREFIX..PREFIX + part.len()) else {
                self.0.close();
                return Err(RequestError::Closed);
            };
            part.copy_from_slice(found);
        }
        Ok(())
    }

    /// Writes `data` at `address`. Where a part is refused, what comes before it may be written.
    pub(crate) fn write(&self, address: u64, data: &[u8]) -> Result<(), RequestError> {
        for (part, at) in data.chunks(LONGEST_TRANSFER).zip(0..) {
            let at = address.wrapping_add(at * LONGEST_TRANSFER as u64);
            self.request(DMA_WRITE, at, part.len(), part)?;
        }
        Ok(())
    }

    fn request(
        &self,
        command: u16,
        address: u64,
        count: usize,
        data: &[u8],
    ) -> Result<Message, RequestError> {
        let (id, answer) = self.0.calls().open().ok_or(RequestError::Closed)?;
        let mut bytes = Vec::with_capacity(PREFIX + data.len());
        bytes.extend(id.to_ne_bytes());
        bytes.extend(command.to_ne_bytes());
        bytes.extend(((PREFIX + data.len()) as u32).to_ne_bytes());
        bytes.extend(COMMAND.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(address.to_ne_bytes());
        bytes.extend((count as u64).to_ne_bytes());
        bytes.extend(data);
        let message = Message {
            bytes,
            files: Vec::new(),
        };
        if self.0.send(&message).is_err() {
            self.0.close();
            return Err(RequestError::Closed);
        }
        let reply = answer
            .recv_timeout(ANSWER_LIMIT)
            .map_err(|error| match error {
                RecvTimeoutError::Timeout => RequestError::Unanswered,
                RecvTimeoutError::Disconnected => RequestError::Closed,
            })?;
        if reply.flags() & ERROR != 0 {
            return Err(RequestError::Refused(reply.word(12)));
        }
        if reply.half(2) != command {
            self.0.close();
            return Err(RequestError::Closed);
        }
        Ok(reply)
    }
}

impl Connection {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends one message to the client, whole.
    fn send(&self, message: &Message) -> io::Result<()> {
        let stream = self
            .to_client
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        message.send(&stream)
    }

    /// Ends it for all: nobody waits for an answer any more. The client's end may be closed already.
    fn close(&self) {
        let mut calls = self.calls();
        calls.closed = true;
        calls.open.clear();
        drop(calls);
        let stream = self
            .to_client
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let _ = stream.shutdown(Shutdown::Both);
    }
}

impl Calls {
    /// A number that no other call has, and where its answer will be. `None` where none will come.
    fn open(&mut self) -> Option<(u16, Receiver<Message>)> {
        if self.closed || self.open.len() > usize::from(u16::MAX) {
            return None;
        }
        while self.open.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let id = self.next;
        self.next = id.wrapping_add(1);
        let (sender, receiver) = sync_channel(1);
        self.open.insert(id, sender);
        Some((id, receiver))
    }

    /// An answer has come. Its caller may have given up.
    fn answer(&mut self, reply: Message) {
        match self.open.remove(&reply.half(0)) {
            Some(caller) => drop(caller.try_send(reply)),
            None => log::warn!("an answer to nothing: message {}", reply.half(0)),
        }
    }
}

/// Puts itself between `client` and a server that is yet to listen: gives the means to ask the client
/// for memory, and a listening socket for [`vfio_user::Server::from_owned_fd`], where the client's
/// commands come from. Both threads end with the connection.
pub(crate) fn interpose(client: UnixStream) -> io::Result<(DmaRequester, OwnedFd)> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    // The server accepts one connection, and this one is there before anybody can know the name.
    let name = format!("vfio-user-relay-{}-{number}", std::process::id());
    let address = SocketAddr::from_abstract_name(name)?;
    let listener = UnixListener::bind_addr(&address)?;
    let server = UnixStream::connect_addr(&address)?;

    client.set_write_timeout(Some(ANSWER_LIMIT))?;
    let connection = Arc::new(Connection {
        to_client: Mutex::new(client.try_clone()?),
        calls: Mutex::new(Calls::default()),
    });
    let (from_server, to_server) = (server.try_clone()?, server);
    let (down, up) = (connection.clone(), connection.clone());
    thread::Builder::new()
        .name("from-client".into())
        .spawn(move || {
            tell("the client", from_client(&client, &to_server, &down));
            down.close();
            let _ = to_server.shutdown(Shutdown::Both);
        })?;
    thread::Builder::new()
        .name("from-server".into())
        .spawn(move || {
            tell("the server", from_server_to(&from_server, &up));
            up.close();
            let _ = from_server.shutdown(Shutdown::Both);
        })?;
    Ok((DmaRequester(connection), listener.into()))
}

fn tell(who: &str, ended: io::Result<()>) {
    match ended {
        Ok(()) => log::debug!("{who} has disconnected"),
        Err(error) => log::info!("the connection of {who} broke: {error}"),
    }
}

/// Passes the client's commands on, and its replies to who awaits them.
fn from_client(
    client: &UnixStream,
    server: &UnixStream,
    connection: &Connection,
) -> io::Result<()> {
    while let Some(message) = Message::receive(client)? {
        if message.flags() & TYPE == REPLY {
            connection.calls().answer(message);
        } else {
            message.send(server)?;
        }
    }
    Ok(())
}

/// Passes on what the server says.
fn from_server_to(server: &UnixStream, connection: &Connection) -> io::Result<()> {
    while let Some(message) = Message::receive(server)? {
        connection.send(&message)?;
    }
    Ok(())
}

/// One message, whole. Numbers in it are in the host's order.
struct Message {
    bytes: Vec<u8>,
    files: Vec<OwnedFd>,
}

impl Message {
    /// The next one; `None` where the connection ends between two.
    fn receive(stream: &UnixStream) -> io::Result<Option<Self>> {
        let mut message = Self {
            bytes: vec![0; HEADER],
            files: Vec::new(),
        };
        if !message.fill(stream, 0)? {
            return Ok(None);
        }
        let len = message.word(4) as usize;
        if !(HEADER..=LONGEST_MESSAGE).contains(&len) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a message of {len} bytes"),
            ));
        }
        message.bytes.resize(len, 0);
        if !message.fill(stream, HEADER)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Some(message))
    }

    /// Receives the bytes from `done` on, and what files come with them. `false` where the connection
    /// has ended before the first of them.
    fn fill(&mut self, stream: &UnixStream, mut done: usize) -> io::Result<bool> {
        let start = done;
        while done < self.bytes.len() {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_FILES))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let got = retry_on_intr(|| {
                let mut part = [IoSliceMut::new(&mut self.bytes[done..])];
                recvmsg(stream, &mut part, &mut control, RecvFlags::CMSG_CLOEXEC)
            })?;
            for ancillary in control.drain() {
                if let RecvAncillaryMessage::ScmRights(files) = ancillary {
                    self.files.extend(files);
                }
            }
            if got.flags.contains(ReturnFlags::CTRUNC) {
                return Err(Errno::MSGSIZE.into());
            }
            match got.bytes {
                0 if done == start => return Ok(false),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                bytes => done += bytes,
            }
        }
        Ok(true)
    }

    fn send(&self, mut stream: &UnixStream) -> io::Result<()> {
        if self.files.is_empty() {
            return stream.write_all(&self.bytes);
        }
        let files: Vec<_> = self.files.iter().map(OwnedFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_FILES))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(Errno::MSGSIZE.into());
        }
        let sent = retry_on_intr(|| {
            let whole = [IoSlice::new(&self.bytes)];
            sendmsg(stream, &whole, &mut control, SendFlags::NOSIGNAL)
        })?;
        stream.write_all(&self.bytes[sent..])
    }

    /// A half word of the header, than which no message is shorter.
    fn half(&self, at: usize) -> u16 {
        u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// A word of the header.
    fn word(&self, at: usize) -> u32 {
        let mut word = [0; 4];
        word.copy_from_slice(&self.bytes[at..at + 4]);
        u32::from_ne_bytes(word)
    }

    fn flags(&self) -> u32 {
        self.word(8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::time::Instant;

    const EFAULT: u32 = 14;
    const REGION_WRITE: u16 = 10;

    fn message(id: u16, command: u16, flags: u32, error: u32, body: &[u8]) -> Message {
        let mut bytes = Vec::new();
        bytes.extend(id.to_ne_bytes());
        bytes.extend(command.to_ne_bytes());
        bytes.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(error.to_ne_bytes());
        bytes.extend(body);
        Message {
            bytes,
            files: Vec::new(),
        }
    }

    /// A client's end, what asks it, and the server's end.
    fn connection() -> (UnixStream, DmaRequester, UnixStream) {
        let (ours, client) = UnixStream::pair().unwrap();
        let (requester, listener) = interpose(ours).unwrap();
        let (server, _) = UnixListener::from(listener).accept().unwrap();
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(4 * ANSWER_LIMIT)).unwrap();
        }
        (client, requester, server)
    }

    /// Serves `memory` as a client does: what lies outside is refused. Ends with the connection, and
    /// gives back the memory and the numbers of the commands.
    fn serve(client: UnixStream, mut memory: Vec<u8>) -> thread::JoinHandle<(Vec<u8>, Vec<u16>)> {
        thread::spawn(move || {
            let mut numbers = Vec::new();
            while let Ok(Some(asked)) = Message::receive(&client) {
                let long = |at: usize| {
                    u64::from_ne_bytes(asked.bytes[at..at + 8].try_into().unwrap()) as usize
                };
                let (address, count) = (long(16), long(24));
                numbers.push(asked.half(0));
                let end = address
                    .checked_add(count)
                    .filter(|end| *end <= memory.len());
                let (id, command) = (asked.half(0), asked.half(2));
                let reply = match (end, command) {
                    (None, _) => message(id, command, REPLY | ERROR, EFAULT, &[]),
                    (Some(end), DMA_READ) => {
                        let body = [&asked.bytes[HEADER..PREFIX], &memory[address..end]].concat();
                        message(id, command, REPLY, 0, &body)
                    }
                    (Some(end), DMA_WRITE) => {
                        memory[address..end].copy_from_slice(&asked.bytes[PREFIX..]);
                        message(id, command, REPLY, 0, &[])
                    }
                    other => panic!("{other:?}"),
                };
                reply.send(&client).unwrap();
            }
            (memory, numbers)
        })
    }

    #[test]
    fn memory_is_read_and_written_by_many_at_once() {
        let (client, requester, server) = connection();
        let served = serve(client, vec![7; 64 << 10]);
        thread::scope(|scope| {
            for n in 0..4u8 {
                let requester = requester.clone();
                scope.spawn(move || {
                    let at = u64::from(n) << 14;
                    for round in 0..50 {
                        let data: Vec<u8> = (0..1000).map(|i| i as u8 ^ round ^ n).collect();
                        requester.write(at + 3, &data).unwrap();
                        let mut back = vec![0; 1002];
                        requester.read(at + 2, &mut back).unwrap();
                        assert_eq!((back[0], back[1001]), (7, 7));
                        assert!(back[1..1001] == data);
                    }
                });
            }
        });
        drop((requester, server));
        let (memory, numbers) = served.join().unwrap();
        assert_eq!(memory[(3 << 14) + 3], 49 ^ 3);
        assert_eq!(numbers.len(), 4 * 50 * 2);
    }

    #[test]
    fn long_transfers_go_in_parts() {
        let (client, requester, server) = connection();
        let len = LONGEST_TRANSFER + 100;
        let served = serve(client, vec![0; 2 * LONGEST_TRANSFER]);
        let data: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
        requester.write(5, &data).unwrap();
        let mut back = vec![0; len];
        requester.read(5, &mut back).unwrap();
        assert!(back == data);
        drop((requester, server));
        assert_eq!(served.join().unwrap().1.len(), 4);
    }

    #[test]
    fn what_the_client_refuses_is_refused() {
        let (client, requester, _server) = connection();
        let served = serve(client, vec![0; 4096]);
        let refused = Err(RequestError::Refused(EFAULT));
        assert_eq!(requester.read(4095, &mut [0; 2]), refused);
        assert_eq!(requester.write(u64::MAX, &[1]), refused);
        assert_eq!(requester.write(4095, &[1]), Ok(()), "and then it goes on");
        assert!(!served.is_finished());
    }

    /// Commands with their files go down, answers in pieces go up, requests go between them.
    #[test]
    fn client_and_server_talk_as_before() {
        let (client, requester, server) = connection();
        let (mut end, file) = UnixStream::pair().unwrap();
        let mut command = message(9, REGION_WRITE, COMMAND, 0, b"some data");
        command.files.push(file.into());
        command.send(&client).unwrap();
        let asker = thread::spawn(move || requester.write(0x1000, b"stray"));
        let asked = Message::receive(&client).unwrap().unwrap();
        assert_eq!((asked.half(2), asked.flags()), (DMA_WRITE, COMMAND));

        let got = Message::receive(&server).unwrap().unwrap();
        assert!(got.bytes == command.bytes);
        assert_eq!(got.files.len(), 1);
        drop(command);
        let mut file = File::from(got.files.into_iter().next().unwrap());
        file.write_all(b"through").unwrap();
        drop(file);
        let mut text = String::new();
        end.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");

        // The same number as our own request has: the type tells them apart.
        let answer = message(asked.half(0), REGION_WRITE, REPLY, 0, &[5; 3000]);
        let (first, second) = answer.bytes.split_at(20);
        (&server).write_all(first).unwrap();
        (&server).write_all(second).unwrap();
        let back = Message::receive(&client).unwrap().unwrap();
        assert!(back.bytes == answer.bytes);
        assert!(!asker.is_finished());
        let reply = message(asked.half(0), DMA_WRITE, REPLY, 0, &[]);
        reply.send(&client).unwrap();
        assert_eq!(asker.join().unwrap(), Ok(()));
        client.shutdown(Shutdown::Both).unwrap();
        assert!(Message::receive(&server).unwrap().is_none());
    }

    #[test]
    fn nobody_waits_for_ever() {
        let (client, requester, _server) = connection();
        let begun = Instant::now();
        assert_eq!(requester.write(0, &[1]), Err(RequestError::Unanswered));
        assert!(begun.elapsed() < 2 * ANSWER_LIMIT);
        // What comes too late is nobody's, and its number was not given to another.
        let late = Message::receive(&client).unwrap().unwrap();
        let asker = {
            let requester = requester.clone();
            thread::spawn(move || requester.read(0, &mut [0; 4]))
        };
        let asked = Message::receive(&client).unwrap().unwrap();
        assert_ne!(asked.half(0), late.half(0));
        for reply in [
            message(late.half(0), DMA_WRITE, REPLY, 0, &[]),
            message(77, DMA_READ, REPLY, 0, &[]),
            message(asked.half(0), DMA_READ, REPLY | ERROR, 1, &[]),
        ] {
            reply.send(&client).unwrap();
        }
        assert_eq!(asker.join().unwrap(), Err(RequestError::Refused(1)));
    }

    #[test]
    fn numbers_of_open_calls_are_not_given_again() {
        let mut calls = Calls {
            next: u16::MAX,
            ..Calls::default()
        };
        let all: Vec<_> = (0..=u16::MAX).map(|_| calls.open().unwrap().0).collect();
        assert_eq!(all[..2], [u16::MAX, 0]);
        assert!(calls.open().is_none(), "none is left");
        calls.answer(message(5, DMA_READ, REPLY, 0, &[]));
        assert_eq!(calls.open().unwrap().0, 5);
    }

    #[test]
    fn a_client_that_goes_or_talks_nonsense_ends_all() {
        let short = message(0, REGION_WRITE, COMMAND, 0, &[]);
        let mut nonsense = short.bytes.clone();
        nonsense[4] = 3;
        for last_words in [vec![], nonsense, short.bytes[..9].to_vec()] {
            let (mut client, requester, server) = connection();
            let asker = {
                let requester = requester.clone();
                thread::spawn(move || requester.read(0, &mut [0; 4]))
            };
            Message::receive(&client).unwrap().unwrap();
            client.write_all(&last_words).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(asker.join().unwrap(), Err(RequestError::Closed));
            assert_eq!(requester.write(0, &[1]), Err(RequestError::Closed));
            assert!(Message::receive(&server).unwrap().is_none());
        }
    }

    #[test]
    fn a_server_that_ends_ends_the_client_too() {
        let (client, requester, server) = connection();
        drop(server);
        assert!(Message::receive(&client).unwrap().is_none());
        assert_eq!(requester.write(0, &[1]), Err(RequestError::Closed));
    }

    #[test]
    fn a_read_that_is_answered_short_ends_it() {
        let (client, requester, server) = connection();
        let asker = thread::spawn(move || requester.read(0, &mut [0; 4]));
        let asked = Message::receive(&client).unwrap().unwrap();
        let body = &asked.bytes[HEADER..PREFIX];
        let reply = message(asked.half(0), DMA_READ, REPLY, 0, body);
        reply.send(&client).unwrap();
        assert_eq!(asker.join().unwrap(), Err(RequestError::Closed));
        assert!(Message::receive(&server).unwrap().is_none());
    }
}
