//! What stands behind the stock main data of a heap record.

use crate::heap_page::Cid;

/// Bytes of a [`Trailer`].
pub const SIZE_OF_TRAILER: usize = 12;

/// Command ids of the tuples that a heap record touched: the new one or the only one first, the old version of
/// an update second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trailer {
    /// Both command ids; the default where there is no such tuple.
    pub cids: [Cid; 2],
}

impl Trailer {
    /// Whether stock redo gives the same command ids: it sets all to `FirstCommandId` and no combo
    /// (`heap_xlog_insert` and its neighbours in `heapam.c`). Such a record needs no trailer.
    pub fn is_default(&self) -> bool {
        *self == Trailer::default()
    }

    /// The bytes in WAL.
    pub fn encode(&self) -> [u8; SIZE_OF_TRAILER] {
        let [first, second] = self.cids;
        let mut bytes = [0; SIZE_OF_TRAILER];
        bytes[..4].copy_from_slice(&first.raw.to_le_bytes());
        bytes[4..8].copy_from_slice(&second.raw.to_le_bytes());
        bytes[8] = first.combo.into();
        bytes[9] = second.combo.into();
        bytes
    }

    /// Splits the main data of a record into the stock part and the trailer; `None` if it is too short or if
    /// the last bytes are not a trailer.
    pub fn split(main_data: &[u8]) -> Option<(&[u8], Trailer)> {
        let (stock, bytes) = main_data.split_last_chunk::<SIZE_OF_TRAILER>()?;
        let [a, b, c, d, e, f, g, h, first @ (0 | 1), second @ (0 | 1), 0, 0] = *bytes else {
            return None;
        };
        let cids = [
            Cid { raw: u32::from_le_bytes([a, b, c, d]), combo: first == 1 },
            Cid { raw: u32::from_le_bytes([e, f, g, h]), combo: second == 1 },
        ];
        Some((stock, Trailer { cids }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_are_fixed() {
        let cids = [Cid { raw: 0x0403_0201, combo: false }, Cid { raw: 0x0807_0605, combo: true }];
        assert_eq!(Trailer { cids }.encode(), [1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 0, 0]);
        assert!(!Trailer { cids }.is_default());
        assert!(Trailer::default().is_default());
    }

    proptest! {
        #[test]
        fn splitting_is_total_and_undoes_encoding(
            main_data in prop::collection::vec(any::<u8>(), 0..40),
            raw in any::<[u32; 2]>(),
            combo in any::<[bool; 2]>(),
        ) {
            if let Some((stock, trailer)) = Trailer::split(&main_data) {
                prop_assert_eq!([stock, &trailer.encode()].concat(), main_data.clone());
            }
            let cids = [
                Cid { raw: raw[0], combo: combo[0] },
                Cid { raw: raw[1], combo: combo[1] },
            ];
            let whole = [main_data.as_slice(), &Trailer { cids }.encode()].concat();
            prop_assert_eq!(Trailer::split(&whole), Some((main_data.as_slice(), Trailer { cids })));
        }
    }
}
