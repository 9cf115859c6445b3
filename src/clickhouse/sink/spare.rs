//! Blocks that were sent, for the next rows of their tables.
//!
//! Far behind, one batch follows the other. Buffers that grow from nothing each time are copied again and again, and what
//! they leave in the heap is more than what they hold; these have their size already.

use crate::clickhouse::block::{Block, ColumnSpec};
use std::{collections::VecDeque, sync::Arc};

/// Empty blocks, those that were given back last at the end.
#[derive(Debug, Default)]
pub(super) struct Spares {
    blocks: VecDeque<Block>,
    bytes: usize,
    /// Whether one was given back or taken since the last look.
    used: bool,
}

impl Spares {
    /// Bytes that they take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A block for rows of these very columns. One of a table that has another shape by now fits nobody.
    pub(super) fn take(&mut self, columns: &Arc<[ColumnSpec]>) -> Option<Block> {
        let place = self.blocks.iter().rposition(|block| Arc::ptr_eq(block.specs(), columns))?;
        let block = self.blocks.remove(place)?;
        self.bytes -= block.capacity();
        self.used = true;
        Some(block)
    }

    /// Keeps a block that was sent.
    pub(super) fn give(&mut self, block: Block) {
        if let Some(block) = block.emptied() {
            self.bytes += block.capacity();
            self.blocks.push_back(block);
            self.used = true;
        }
    }

    /// Lets go of the oldest, until no more than so many bytes are taken.
    pub(super) fn shrink(&mut self, to: usize) {
        while self.bytes > to
            && let Some(block) = self.blocks.pop_front()
        {
            self.bytes -= block.capacity();
        }
    }

    /// Called now and then: lets go of one, if nobody needed any.
    pub(super) fn rest(&mut self) {
        if !std::mem::take(&mut self.used) {
            self.shrink(self.bytes.saturating_sub(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clickhouse::types::ColumnType;

    const BYTES: usize = 1 << 20;

    fn columns() -> Arc<[ColumnSpec]> {
        [ColumnSpec::new("note", ColumnType::String, false)].into()
    }

    fn block(columns: &Arc<[ColumnSpec]>, bytes: usize) -> Block {
        let mut block = Block::new(Arc::clone(columns));
        block.column_mut(0).push_text(&vec![b'x'; bytes]).unwrap();
        block.commit_row(7, false);
        block
    }

    #[test]
    fn a_block_comes_back_empty_and_only_for_its_own_columns() {
        let (first, second) = (columns(), columns());
        let mut spares = Spares::default();
        spares.give(block(&first, BYTES));
        spares.give(block(&first, 10));
        assert!(spares.bytes() >= BYTES && spares.take(&second).is_none());
        let taken = spares.take(&first).expect("the one that was given");
        assert!(taken.rows() == 0 && taken.column(0).is_empty() && taken.bytes() == 0);
        assert!(spares.bytes() == 0 && spares.take(&first).is_none());
    }

    #[test]
    fn what_is_too_much_or_not_needed_is_let_go() {
        let columns = columns();
        let mut spares = Spares::default();
        (0..3).for_each(|_| spares.give(block(&columns, BYTES)));
        let three = spares.bytes();
        spares.shrink(three - 1);
        assert_eq!(spares.bytes(), three / 3 * 2);
        spares.rest();
        assert_eq!(spares.bytes(), three / 3 * 2, "they were just given");
        spares.rest();
        spares.rest();
        assert_eq!(spares.bytes(), 0);
    }
}
