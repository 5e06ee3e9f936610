//! Many fences as one: when all of them are signalled, or any.
//!
//! An array listens to its members once somebody waits for it; until then it looks at them when it
//! is asked. From then on their callbacks keep it, and each is gone when the array has ended.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;
use core::time::Duration;

use crate::context::next_context;
use crate::error::FenceError;
use crate::fence::{AlreadySignalled, CallbackId, Fence, Signaler};
use crate::ops::FenceOps;
use crate::sync::Mutex;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    All,
    Any,
}

/// What an array's fence consists of.
struct Array {
    mode: Mode,
    members: Vec<Fence>,
    heard: Mutex<Heard>,
}

/// What came of the members since somebody waits.
struct Heard {
    /// Members that are to end yet.
    left: usize,
    /// The first error among those that have ended.
    result: Result<(), FenceError>,
    /// There while somebody waits.
    signaler: Option<Signaler>,
    /// With members that may outlive the array: a stop that is waited for again and again would
    /// collect callbacks.
    listed: Vec<(Fence, CallbackId)>,
}

impl Fence {
    /// A fence that is signalled when all of `fences` are, with the error of the one that failed
    /// first: of those that failed before somebody waited, of the first in the given order. Of none
    /// it is signalled from the start; of one it is that one.
    pub fn all(fences: impl IntoIterator<Item = Fence>) -> Fence {
        let mut members = flat(Mode::All, fences);
        members.retain(|fence| fence.result() != Some(Ok(())));
        if members.is_empty() {
            return Fence::signalled(next_context(), 1, Ok(()));
        }
        array(Mode::All, members)
    }

    /// A fence that is signalled when the first of `fences` is, as that is. Of none it is abandoned
    /// from the start: nobody is there to signal it.
    pub fn any(fences: impl IntoIterator<Item = Fence>) -> Fence {
        let members = flat(Mode::Any, fences);
        if members.is_empty() {
            return Fence::signalled(next_context(), 1, Err(FenceError::Abandoned));
        }
        array(Mode::Any, members)
    }

    /// The fences that this one was made of by [`Fence::all`] or [`Fence::any`]; itself otherwise.
    pub fn members(&self) -> &[Fence] {
        match self.ops::<Array>() {
            Some(array) => &array.members,
            None => core::slice::from_ref(self),
        }
    }
}

/// Each fence once, and instead of an array of the same mode its members: they nest no deeper, however
/// often they are joined.
fn flat(mode: Mode, fences: impl IntoIterator<Item = Fence>) -> Vec<Fence> {
    let mut members: Vec<Fence> = Vec::new();
    for fence in fences {
        let parts = match fence.ops::<Array>() {
            Some(array) if array.mode == mode => &array.members,
            _ => core::slice::from_ref(&fence),
        };
        for part in parts {
            if !members.iter().any(|member| member.is_same(part)) {
                members.push(part.clone());
            }
        }
    }
    members
}

fn array(mode: Mode, mut members: Vec<Fence>) -> Fence {
    if members.len() == 1
        && let Some(only) = members.pop()
    {
        return only;
    }
    let left = match mode {
        Mode::All => members.len(),
        Mode::Any => 1,
    };
    let array = Array {
        mode,
        members,
        heard: Mutex::new(Heard {
            left,
            result: Ok(()),
            signaler: None,
            listed: Vec::new(),
        }),
    };
    Fence::lazy(next_context(), 1, Arc::new(array))
}

impl Array {
    /// A member has ended.
    fn ended(&self, result: Result<(), FenceError>) {
        let (signaler, result, listed) = {
            let mut heard = self.heard.lock();
            heard.left = heard.left.saturating_sub(1);
            heard.result = heard.result.and(result);
            if heard.left > 0 {
                return;
            }
            let Some(signaler) = heard.signaler.take() else {
                return;
            };
            (signaler, heard.result, mem::take(&mut heard.listed))
        };
        for (member, id) in listed {
            member.remove_callback(id);
        }
        signaler.signal(result);
    }

    /// Remembers to take a callback back when the array has ended, or does so where it has. Whether
    /// it goes on.
    fn keep(&self, member: &Fence, id: CallbackId) -> bool {
        {
            let mut heard = self.heard.lock();
            if heard.signaler.is_some() {
                heard.listed.push((member.clone(), id));
                return true;
            }
        }
        member.remove_callback(id);
        false
    }
}

impl FenceOps for Array {
    fn enable_signaling(&self, fence: &Fence, signaler: Option<Signaler>) {
        self.heard.lock().signaler = signaler;
        for member in &self.members {
            let array = fence.clone();
            let ended = move |result| {
                if let Some(array) = array.ops::<Self>() {
                    array.ended(result);
                }
            };
            match member.add_callback(ended) {
                Err(AlreadySignalled(result)) => self.ended(result),
                Ok(id) if self.mode == Mode::Any && !self.keep(member, id) => return,
                Ok(_) => {}
            }
        }
    }

    fn poll(&self, _: &Fence) -> Option<Result<(), FenceError>> {
        let mut results = self.members.iter().map(Fence::result);
        match self.mode {
            Mode::All => {
                let first = self.heard.lock().result;
                results.try_fold(first, |first, result| Some(first.and(result?)))
            }
            Mode::Any => results.flatten().next(),
        }
    }

    fn set_deadline(&self, _: &Fence, deadline: Duration) {
        for member in &self.members {
            member.set_deadline(deadline);
        }
    }
}
