//! A queue of deadlines.

use alloc::collections::BTreeMap;

/// Things due at a time, cancellable by number.
#[derive(Debug)]
pub struct DeadlineQueue<T> {
    due: BTreeMap<(u64, u64), T>,
    deadlines: BTreeMap<u64, u64>,
}

impl<T> Default for DeadlineQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> DeadlineQueue<T> {
    /// Nothing due.
    pub const fn new() -> Self {
        Self {
            due: BTreeMap::new(),
            deadlines: BTreeMap::new(),
        }
    }

    /// Adds `item`, due at `deadline`, as number `id`, which must be new.
    pub fn insert(&mut self, id: u64, deadline: u64, item: T) {
        self.due.insert((deadline, id), item);
        self.deadlines.insert(id, deadline);
    }

    /// Takes number `id` out, where it is still there.
    pub fn remove(&mut self, id: u64) -> Option<T> {
        let deadline = self.deadlines.remove(&id)?;
        self.due.remove(&(deadline, id))
    }

    /// Takes the earliest one out if it is due at `now`.
    pub fn pop(&mut self, now: u64) -> Option<T> {
        let (deadline, id) = *self.due.first_key_value()?.0;
        if deadline > now {
            return None;
        }
        self.remove(id)
    }

    /// Adds all of `other`, whose numbers are not in use here.
    pub fn append(&mut self, mut other: Self) {
        self.due.append(&mut other.due);
        self.deadlines.append(&mut other.deadlines);
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<u64> {
        self.due.first_key_value().map(|(key, _)| key.0)
    }

    /// How many are waiting.
    pub fn len(&self) -> usize {
        self.due.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.due.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_in_the_order_of_their_deadlines() {
        let mut queue = DeadlineQueue::new();
        queue.insert(1, 30, 'c');
        queue.insert(2, 10, 'a');
        queue.insert(3, 10, 'b');
        assert_eq!(queue.next(), Some(10));
        assert_eq!(queue.pop(9), None);
        assert_eq!(
            (queue.pop(10), queue.pop(10), queue.pop(10)),
            (Some('a'), Some('b'), None)
        );
        assert_eq!(queue.remove(1), Some('c'));
        assert_eq!(queue.remove(1), None);
        assert!(queue.is_empty());
        let mut other = DeadlineQueue::new();
        other.insert(4, 5, 'd');
        queue.insert(5, 6, 'e');
        queue.append(other);
        assert_eq!(
            (queue.len(), queue.remove(4), queue.next()),
            (2, Some('d'), Some(6))
        );
    }
}
