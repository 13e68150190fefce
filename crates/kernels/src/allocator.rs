//! Memory whose large pieces begin with a cache line.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;

/// A cache line, and a vector register of AVX-512.
const LINE: usize = 64;
/// Smaller pieces are left as the system gives them.
const LARGE: usize = 4096;

/// The system's allocator, but what is a page or larger begins with a cache line: rows of f32 numbers then lie in whole
/// lines, where the system's 16 bytes have every vector, read or written, touch two. A program that computes has it as its
/// `#[global_allocator]`.
///
/// The system's own way to align is not used: a piece that glibc 2.36 frees does not fit the next request of the same size, so
/// that it held twice the memory where large pieces were taken and given back in turn.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allocator;

/// What is asked of the system for a large piece: room before it for where the system's piece begins.
fn with_room(layout: Layout) -> Option<Layout> {
    let size = layout.size().checked_add(LINE)?;
    Layout::from_size_align(size, align_of::<*mut u8>()).ok()
}

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= LINE
}

/// The first line within the system's piece that leaves room for its address.
///
/// # Safety
/// `base` is null, or what the system gave for [`with_room`].
unsafe fn line_within(base: *mut u8) -> *mut u8 {
    if base.is_null() {
        return base;
    }
    let skipped = LINE - base.addr() % LINE;
    // SAFETY: `base` is aligned to an address, so that the line begins one address behind it or more, and it has `LINE` bytes
    // more than were asked for.
    unsafe {
        let piece = base.add(skipped);
        piece.cast::<*mut u8>().sub(1).write(base);
        piece
    }
}

// SAFETY: what is not large is the system's. A large piece lies within a piece of the system's, whose address stands before
// it, and has as many bytes as were asked for; whether a piece is large follows from its layout, which is the same when it is
// given back. What grows or shrinks across the border, or is large, is copied into a piece of its own.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_large(layout) {
            // SAFETY: as the caller says.
            return unsafe { System.alloc(layout) };
        }
        let Some(layout) = with_room(layout) else { return null_mut() };
        // SAFETY: the layout is not empty.
        unsafe { line_within(System.alloc(layout)) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !is_large(layout) {
            // SAFETY: as the caller says.
            return unsafe { System.alloc_zeroed(layout) };
        }
        let Some(layout) = with_room(layout) else { return null_mut() };
        // SAFETY: the layout is not empty.
        unsafe { line_within(System.alloc_zeroed(layout)) }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        let base = match with_room(layout).filter(|_| is_large(layout)) {
            // SAFETY: the address of the system's piece was written there.
            Some(whole) => unsafe { (piece.cast::<*mut u8>().sub(1).read(), whole) },
            None => (piece, layout),
        };
        // SAFETY: this is what the system gave, with the layout that it was asked for.
        unsafe { System.dealloc(base.0, base.1) };
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller says that the new size is one of a layout.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        if !is_large(layout) && !is_large(new_layout) {
            // SAFETY: as the caller says.
            return unsafe { System.realloc(piece, layout, new_size) };
        }
        // SAFETY: the new piece is another one, and both have the smaller of the two sizes.
        unsafe {
            let new = self.alloc(new_layout);
            if !new.is_null() {
                std::ptr::copy_nonoverlapping(piece, new, layout.size().min(new_size));
                self.dealloc(piece, layout);
            }
            new
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of every kind: whole lines, what was written stays through other sizes, zeros are zeros.
    #[test]
    fn pieces_keep_their_bytes() {
        for align in [1, 16, 64, 128] {
            let mut layout = Layout::from_size_align(100, align).unwrap();
            // SAFETY: the layouts are of what was given, none is empty, and only what was given is read and written.
            unsafe {
                let mut piece = Allocator.alloc_zeroed(layout);
                assert!((0..100).all(|i| piece.add(i).read() == 0));
                (0..100).for_each(|i| piece.add(i).write(i as u8));
                for size in [4095, 4096, 5000, 1 << 20, 4096, 200] {
                    piece = Allocator.realloc(piece, layout, size);
                    layout = Layout::from_size_align(size, align).unwrap();
                    assert!((0..100).all(|i| piece.add(i).read() == i as u8), "{align} {size}");
                    assert!(piece.addr().is_multiple_of(if size < LARGE { align } else { align.max(LINE) }));
                    piece.add(size - 1).write(1);
                }
                Allocator.dealloc(piece, layout);
                let layout = Layout::from_size_align(3 << 20, align).unwrap();
                let piece = Allocator.alloc_zeroed(layout);
                assert!((0..layout.size()).all(|i| piece.add(i).read() == 0));
                Allocator.dealloc(piece, layout);
            }
        }
    }

    /// What cannot be had is null.
    #[test]
    fn too_large_pieces_are_refused() {
        let layout = Layout::from_size_align(isize::MAX as usize - 63, 64).unwrap();
        // SAFETY: the layout is not empty.
        assert!(unsafe { Allocator.alloc(layout) }.is_null());
    }
}
