//! The shared prefix cache: prompt heads that many requests begin with, computed once.

use super::memory::{Pool, Reservation};
use std::collections::VecDeque;
use std::sync::Arc;

/// What a prefix depends on: its tokens, and the adapter and scale under which its keys and values
/// were computed.
pub(super) struct Key<A> {
    pub(super) adapter: Option<(Arc<A>, f32)>,
    pub(super) tokens: Vec<u32>,
}

impl<A> Clone for Key<A> {
    fn clone(&self) -> Self {
        Self {
            adapter: self.adapter.clone(),
            tokens: self.tokens.clone(),
        }
    }
}

impl<A> PartialEq for Key<A> {
    fn eq(&self, other: &Self) -> bool {
        // Two loads of one adapter file count as different: that costs a prefix, never an answer.
        let same_adapter = match (&self.adapter, &other.adapter) {
            (None, None) => true,
            (Some((a, x)), Some((b, y))) => Arc::ptr_eq(a, b) && x == y,
            _ => false,
        };
        same_adapter && self.tokens == other.tokens
    }
}

struct Entry<A, P> {
    key: Key<A>,
    prefix: P,
    memory: Reservation,
}

/// Least-recently-used, most recent in front. A handful of entries: a walk beats a map.
pub(super) struct PrefixCache<A, P> {
    entries: VecDeque<Entry<A, P>>,
    capacity: usize,
}

impl<A, P> PrefixCache<A, P> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            capacity,
        }
    }

    pub(super) fn get(&mut self, key: &Key<A>) -> Option<&P> {
        let index = self.entries.iter().position(|entry| entry.key == *key)?;
        let entry = self.entries.remove(index)?;
        self.entries.push_front(entry);
        self.entries.front().map(|entry| &entry.prefix)
    }

    pub(super) fn contains(&self, key: &Key<A>) -> bool {
        self.entries.iter().any(|entry| entry.key == *key)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Gives up entries, the least recently used first, until `bytes` are free in the pool; none if that would not
    /// do. Whether they are free.
    pub(super) fn make_room(&mut self, pool: &Pool, bytes: usize) -> bool {
        let held: usize = self.entries.iter().map(|entry| entry.memory.bytes()).sum();
        if pool.free() + held < bytes {
            return false;
        }
        while pool.free() < bytes && self.entries.pop_back().is_some() {}
        pool.free() >= bytes
    }

    /// `memory` is what the prefix was reserved.
    pub(super) fn insert(&mut self, key: Key<A>, prefix: P, memory: Reservation) {
        self.entries.retain(|entry| entry.key != key);
        self.entries.push_front(Entry { key, prefix, memory });
        self.entries.truncate(self.capacity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(capacity: usize) -> Arc<Pool> {
        Pool::new(capacity, prometheus::IntGauge::new("used", "Used.").unwrap())
    }

    fn memory() -> Reservation {
        pool(1).reserve(1).unwrap()
    }

    fn key(tokens: &[u32], adapter: Option<(&Arc<()>, f32)>) -> Key<()> {
        Key {
            adapter: adapter.map(|(a, scale)| (Arc::clone(a), scale)),
            tokens: tokens.to_vec(),
        }
    }

    #[test]
    fn least_recently_used_goes_first() {
        let mut cache = PrefixCache::new(2);
        cache.insert(key(&[1], None), 1, memory());
        cache.insert(key(&[2], None), 2, memory());
        assert_eq!(cache.get(&key(&[1], None)), Some(&1));
        cache.insert(key(&[3], None), 3, memory());
        assert!(cache.contains(&key(&[1], None)) && !cache.contains(&key(&[2], None)));
        cache.insert(key(&[3], None), 4, memory());
        assert_eq!(cache.get(&key(&[3], None)), Some(&4));
        assert_eq!(cache.entries.len(), 2);
    }

    #[test]
    fn adapters_and_scales_do_not_mix() {
        let (a, b) = (Arc::new(()), Arc::new(()));
        let mut cache = PrefixCache::new(9);
        for (value, adapter) in [None, Some((&a, 1.0)), Some((&a, 0.5)), Some((&b, 1.0))]
            .into_iter()
            .enumerate()
        {
            assert_eq!(cache.get(&key(&[1], adapter)), None);
            cache.insert(key(&[1], adapter), value, memory());
        }
        assert_eq!(cache.get(&key(&[1], Some((&a, 0.5)))), Some(&2));
    }

    #[test]
    fn no_capacity_keeps_nothing() {
        let mut cache = PrefixCache::new(0);
        cache.insert(key(&[1], None), 1, memory());
        assert_eq!(cache.get(&key(&[1], None)), None);
    }

    #[test]
    fn entries_give_way_to_what_needs_their_memory() {
        let pool = pool(10);
        let mut cache = PrefixCache::new(9);
        for token in [1, 2] {
            cache.insert(key(&[token], None), token, pool.reserve(3).unwrap());
        }
        let sequence = pool.reserve(2).unwrap();
        // Nothing is given up in vain.
        assert!(!cache.make_room(&pool, 9));
        assert_eq!(cache.len(), 2);
        assert!(cache.make_room(&pool, 5));
        assert!(cache.contains(&key(&[2], None)) && !cache.contains(&key(&[1], None)));
        drop(sequence);
        assert!(cache.make_room(&pool, 7));
        assert_eq!(cache.len(), 1);
    }
}
