//! A hash table with an age order in memory that is given to it and never grows.
//!
//! Entries are nodes of one array; hash chains and the age list are indices into it, so the table works at
//! whatever address shared memory is mapped. The caller holds the lock that the memory belongs to.

/// What can be a key: plain words, so that any bytes in shared memory are a valid value.
pub trait Key: Copy + Eq + Default {
    /// A well-mixed hash. Callers may use the upper half for partitions; chains use the lower half.
    fn hash(&self) -> u64;
}

/// Mixes words into a hash; the finisher is that of SplitMix64.
pub fn mix(words: &[u32]) -> u64 {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for word in words {
        state = (state ^ u64::from(*word)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        state ^= state >> 29;
    }
    state = (state ^ (state >> 30)).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ (state >> 31)
}

const NIL: u32 = u32::MAX;

/// Fixed part of a table. All-zero bytes are not a table yet: see [`TableMut::init`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Header {
    free: u32,
    used: u32,
    oldest: u32,
    newest: u32,
}

/// One entry with its links.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Node<K, V> {
    key: K,
    value: V,
    chain: u32,
    older: u32,
    newer: u32,
}

/// Chain heads that a table of `capacity` entries has.
pub fn bucket_count(capacity: usize) -> usize {
    capacity.max(1).next_power_of_two()
}

/// A table that may be read: the caller holds its lock at least shared.
#[derive(Clone, Copy)]
pub struct Table<'a, K, V> {
    header: &'a Header,
    buckets: &'a [u32],
    nodes: &'a [Node<K, V>],
}

/// A table that may be changed: the caller holds its lock exclusively.
pub struct TableMut<'a, K, V> {
    header: &'a mut Header,
    buckets: &'a mut [u32],
    nodes: &'a mut [Node<K, V>],
}

fn at(index: u32) -> usize {
    index as usize
}

fn bucket<K: Key>(key: &K, buckets: &[u32]) -> usize {
    let mask = (buckets.len() as u64).wrapping_sub(1);
    usize::try_from(key.hash() & mask).unwrap_or(0)
}

impl<'a, K: Key, V: Copy> Table<'a, K, V> {
    /// A view of initialised memory; `buckets` has [`bucket_count`] elements.
    pub fn new(header: &'a Header, buckets: &'a [u32], nodes: &'a [Node<K, V>]) -> Self {
        Table { header, buckets, nodes }
    }

    fn find(&self, key: &K) -> Option<u32> {
        let mut index = self.buckets.get(bucket(key, self.buckets)).copied()?;
        while let Some(node) = self.nodes.get(at(index)) {
            if node.key == *key {
                return Some(index);
            }
            index = node.chain;
        }
        None
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<V> {
        self.find(key).and_then(|index| self.nodes.get(at(index))).map(|node| node.value)
    }

    /// Number of a key's node, which it keeps as long as it is in the table, and nobody else has meanwhile.
    pub fn index_of(&self, key: &K) -> Option<u32> {
        self.find(key)
    }

    /// The key of the oldest entry.
    pub fn oldest(&self) -> Option<K> {
        self.nodes.get(at(self.header.oldest)).map(|node| node.key)
    }

    /// Entries in the table.
    pub fn len(&self) -> usize {
        at(self.header.used)
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All entries, from the oldest to the newest.
    pub fn iter(&self) -> impl Iterator<Item = (K, V)> + use<'a, K, V> {
        let nodes = self.nodes;
        let mut next = self.header.oldest;
        std::iter::from_fn(move || {
            let node = nodes.get(at(next))?;
            next = node.newer;
            Some((node.key, node.value))
        })
    }
}

impl<'a, K: Key, V: Copy + Default> TableMut<'a, K, V> {
    /// A view of initialised memory; `buckets` has [`bucket_count`] elements.
    pub fn new(
        header: &'a mut Header,
        buckets: &'a mut [u32],
        nodes: &'a mut [Node<K, V>],
    ) -> Self {
        TableMut { header, buckets, nodes }
    }

    /// Makes an empty table of any bytes.
    pub fn init(&mut self) {
        self.buckets.fill(NIL);
        let count = u32::try_from(self.nodes.len()).unwrap_or(NIL);
        for (index, node) in (0..count).zip(self.nodes.iter_mut()) {
            let chain = if index + 1 < count { index + 1 } else { NIL };
            *node = Node { chain, older: NIL, newer: NIL, ..Node::default() };
        }
        let free = if count == 0 { NIL } else { 0 };
        *self.header = Header { free, used: 0, oldest: NIL, newest: NIL };
    }

    /// The same table for reading.
    pub fn as_table(&self) -> Table<'_, K, V> {
        Table { header: self.header, buckets: self.buckets, nodes: self.nodes }
    }

    /// The value of a key, to be changed in place; its age stays.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let index = self.as_table().find(key)?;
        self.nodes.get_mut(at(index)).map(|node| &mut node.value)
    }

    /// Makes the entry of `key` the newest.
    pub fn touch(&mut self, key: &K) {
        if let Some(index) = self.as_table().find(key) {
            self.unlink_age(index);
            self.link_newest(index);
        }
    }

    /// Adds or replaces an entry, which becomes the newest. When the table is full the oldest entry makes room
    /// and is returned. A table without capacity returns the new entry itself: it could not be kept.
    #[must_use = "a displaced entry carries knowledge that must go somewhere"]
    pub fn insert(&mut self, key: K, value: V) -> Option<(K, V)> {
        if let Some(index) = self.as_table().find(&key) {
            if let Some(node) = self.nodes.get_mut(at(index)) {
                node.value = value;
            }
            self.unlink_age(index);
            self.link_newest(index);
            return None;
        }
        let displaced = if self.header.free == NIL { self.remove_oldest() } else { None };
        let index = self.header.free;
        let head_at = bucket(&key, self.buckets);
        let (Some(node), Some(head)) =
            (self.nodes.get_mut(at(index)), self.buckets.get_mut(head_at))
        else {
            return Some((key, value));
        };
        self.header.free = node.chain;
        *node = Node { key, value, chain: *head, older: NIL, newer: NIL };
        *head = index;
        self.header.used += 1;
        self.link_newest(index);
        displaced
    }

    /// Adds an entry only if there is room; whether it is in the table now.
    pub fn try_insert(&mut self, key: K, value: V) -> bool {
        if self.header.free == NIL && self.as_table().find(&key).is_none() {
            return false;
        }
        self.insert(key, value).is_none()
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let index = self.as_table().find(key)?;
        let chain = self.nodes.get(at(index))?.chain;
        let head = self.buckets.get_mut(bucket(key, self.buckets))?;
        if *head == index {
            *head = chain;
        } else {
            let mut before = *head;
            while let Some(node) = self.nodes.get_mut(at(before)) {
                if node.chain == index {
                    node.chain = chain;
                    break;
                }
                before = node.chain;
            }
        }
        self.unlink_age(index);
        let free = self.header.free;
        let node = self.nodes.get_mut(at(index))?;
        let value = node.value;
        *node = Node { chain: free, older: NIL, newer: NIL, ..Node::default() };
        self.header.free = index;
        self.header.used -= 1;
        Some(value)
    }

    fn remove_oldest(&mut self) -> Option<(K, V)> {
        let key = self.nodes.get(at(self.header.oldest))?.key;
        self.remove(&key).map(|value| (key, value))
    }

    /// Takes out every entry for which `drop_it` says so.
    pub fn remove_where(&mut self, mut drop_it: impl FnMut(&K, &V) -> bool) {
        let mut index = self.header.oldest;
        while let Some(node) = self.nodes.get(at(index)) {
            let (key, newer) = (node.key, node.newer);
            if drop_it(&key, &node.value) {
                self.remove(&key);
            }
            index = newer;
        }
    }

    fn unlink_age(&mut self, index: u32) {
        let Some(Node { older, newer, .. }) = self.nodes.get(at(index)).copied() else { return };
        match self.nodes.get_mut(at(older)) {
            Some(node) => node.newer = newer,
            None => self.header.oldest = newer,
        }
        match self.nodes.get_mut(at(newer)) {
            Some(node) => node.older = older,
            None => self.header.newest = older,
        }
    }

    fn link_newest(&mut self, index: u32) {
        let older = self.header.newest;
        if let Some(node) = self.nodes.get_mut(at(index)) {
            node.older = older;
            node.newer = NIL;
        }
        match self.nodes.get_mut(at(older)) {
            Some(node) => node.newer = index,
            None => self.header.oldest = index,
        }
        self.header.newest = index;
    }
}

/// A table in memory of its own, for tests.
#[cfg(test)]
pub(crate) struct Owned<K, V> {
    header: Header,
    buckets: Vec<u32>,
    nodes: Vec<Node<K, V>>,
}

#[cfg(test)]
impl<K: Key, V: Copy + Default> Owned<K, V> {
    pub(crate) fn new(capacity: usize) -> Self {
        let mut owned = Owned {
            header: Header::default(),
            buckets: vec![7; bucket_count(capacity)],
            nodes: vec![Node::default(); capacity],
        };
        owned.table().init();
        owned
    }

    pub(crate) fn table(&mut self) -> TableMut<'_, K, V> {
        TableMut::new(&mut self.header, &mut self.buckets, &mut self.nodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Key for u32 {
        fn hash(&self) -> u64 {
            // Few distinct hashes, so that chains are long.
            u64::from(*self % 3)
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u32, u32),
        TryInsert(u32, u32),
        Remove(u32),
        Touch(u32),
        RemoveWhere(u32),
    }

    fn op() -> impl Strategy<Value = Op> {
        let key = 0u32..12;
        prop_oneof![
            (key.clone(), any::<u32>()).prop_map(|(k, v)| Op::Insert(k, v)),
            (key.clone(), any::<u32>()).prop_map(|(k, v)| Op::TryInsert(k, v)),
            key.clone().prop_map(Op::Remove),
            key.clone().prop_map(Op::Touch),
            key.prop_map(Op::RemoveWhere),
        ]
    }

    /// The same operations on a plain list, oldest first.
    fn model(list: &mut Vec<(u32, u32)>, capacity: usize, op: &Op) -> Option<(u32, u32)> {
        let position = |list: &[(u32, u32)], key: u32| list.iter().position(|(k, _)| *k == key);
        match *op {
            Op::Insert(key, value) => {
                let mut displaced = None;
                match position(list, key) {
                    Some(at) => drop(list.remove(at)),
                    None if capacity == 0 => return Some((key, value)),
                    None if list.len() == capacity => displaced = Some(list.remove(0)),
                    None => {}
                }
                list.push((key, value));
                return displaced;
            }
            Op::TryInsert(key, value) => {
                if let Some(at) = position(list, key) {
                    list.remove(at);
                } else if list.len() == capacity {
                    return None;
                }
                list.push((key, value));
            }
            Op::Remove(key) => {
                position(list, key).map(|at| list.remove(at));
            }
            Op::Touch(key) => {
                if let Some(at) = position(list, key) {
                    let entry = list.remove(at);
                    list.push(entry);
                }
            }
            Op::RemoveWhere(key) => list.retain(|(k, _)| k % 4 != key % 4),
        }
        None
    }

    proptest! {
        #[test]
        fn behaves_like_a_list(capacity in 0usize..8, ops in prop::collection::vec(op(), 0..200)) {
            let mut owned = Owned::<u32, u32>::new(capacity);
            let mut list = Vec::new();
            for op in &ops {
                let expected = model(&mut list, capacity, op);
                let mut table = owned.table();
                let displaced = match *op {
                    Op::Insert(key, value) => table.insert(key, value),
                    Op::TryInsert(key, value) => {
                        let kept = table.try_insert(key, value);
                        prop_assert_eq!(kept, list.iter().any(|(k, v)| (*k, *v) == (key, value)));
                        None
                    }
                    Op::Remove(key) => { table.remove(&key); None }
                    Op::Touch(key) => { table.touch(&key); None }
                    Op::RemoveWhere(key) => { table.remove_where(|k, _| k % 4 == key % 4); None }
                };
                prop_assert_eq!(displaced, expected);
                let all: Vec<_> = owned.table().as_table().iter().collect();
                prop_assert_eq!(&all, &list);
                prop_assert_eq!(owned.table().as_table().len(), list.len());
                for (key, value) in &list {
                    prop_assert_eq!(owned.table().as_table().get(key), Some(*value));
                }
            }
        }
    }
}
