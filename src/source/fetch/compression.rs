//! Decompression that a hostile or broken peer cannot turn against us.
//!
//! The records of a wire batch may be compressed as one block of gzip, snappy,
//! lz4 or zstd. What comes out is written behind what is already in a recycled
//! buffer, grows with what is really there, and ends in a typed error at a
//! limit: a few kilobytes of zstd can announce, and indeed produce, terabytes.

use std::io::Read;

use zstd::stream::raw::Operation;

use super::buffers::Buffer;

/// Output of one wire batch above which it is refused. Java's producer builds
/// batches of kilobytes, and brokers refuse requests above 100 MiB by default
/// (`socket.request.max.bytes`); what exceeds this is a bomb or a mistake.
pub(super) const MOST_DECOMPRESSED: usize = 256 * 1024 * 1024;

/// Step in which output of unknown size is made room for.
const STEP: usize = 64 * 1024;

/// The first bytes of snappy-java's framing: what Java's and librdkafka's
/// producers write instead of a bare snappy block.
const XERIAL_MAGIC: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
/// Magic, version and the oldest version that can read it.
const XERIAL_HEADER: usize = 16;

const LZ4_MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];

/// No copy in a snappy block makes more than 64 bytes of 2, no sequence of lz4
/// more than 255 bytes of one.
const SNAPPY_RATIO: usize = 64;
const LZ4_RATIO: usize = 256;

/// Text and JSON come to three or four. What made more before is likely to do
/// so again.
const LIKELY_RATIO: usize = 8;

/// How the records of a wire batch are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

/// Why a block cannot be decompressed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecompressError {
    #[error("it decompresses to more than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("{codec:?}: {what}")]
    Malformed { codec: Codec, what: String },
}

/// Decompresses block after block, keeping what the codecs need for it.
pub(super) struct Decompressor {
    /// Output of one wire batch above which it is refused.
    pub(super) limit: usize,
    snappy: snap::raw::Decoder,
    /// Made when the first block of it comes: it takes some 100 KiB.
    zstd: Option<zstd::stream::raw::Decoder<'static>>,
    /// How long the last buffer became, and of how much.
    usual: usize,
    usual_ratio: usize,
    /// What the buffer in hand is made of.
    compressed: usize,
}

impl std::fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decompressor")
    }
}

impl Default for Decompressor {
    fn default() -> Self {
        Self {
            limit: MOST_DECOMPRESSED,
            snappy: snap::raw::Decoder::default(),
            zstd: None,
            usual: 0,
            usual_ratio: 0,
            compressed: 0,
        }
    }
}

impl Decompressor {
    /// How long a buffer for `compressed` bytes is likely to become, from those
    /// before: one that fits need not grow.
    ///
    /// Growing costs more than time: an allocator keeps the steps, once for each
    /// thread.
    pub(super) fn likely_output(&mut self, compressed: usize) -> usize {
        self.compressed = compressed;
        let ratio = self.usual_ratio.max(LIKELY_RATIO);
        let likely = self.usual.min(compressed.saturating_mul(ratio));
        // Room is made for a whole block before it is known how much of it is
        // needed; where the last one does not fit, the buffer would double.
        likely.saturating_add(STEP)
    }

    /// Remembers how long a buffer became.
    pub(super) fn remember_output(&mut self, len: usize) {
        self.usual = len;
        self.usual_ratio = len.div_ceil(self.compressed.max(1));
    }

    /// Appends what `input` decompresses to, at most `limit` bytes of it.
    ///
    /// # Errors
    ///
    /// Where `input` is not a block of that codec or makes more than `limit`
    /// bytes; `output` then holds what it held before.
    pub(super) fn decompress(
        &mut self,
        codec: Codec,
        input: &[u8],
        output: &mut Buffer,
        limit: usize,
    ) -> Result<(), DecompressError> {
        let before = output.len();
        let mut target = Target {
            output,
            before,
            limit,
        };
        let result = match codec {
            Codec::Gzip => gzip(input, &mut target),
            Codec::Snappy => self.snappy(input, &mut target),
            Codec::Lz4 => lz4(input, &mut target),
            Codec::Zstd => self.zstd(input, &mut target),
        };
        let result = match result {
            Ok(()) if output.len() - before > limit => Err(DecompressError::TooLarge { limit }),
            other => other,
        };
        if result.is_err() {
            output.truncate(before);
        }
        result
    }

    fn snappy(&mut self, input: &[u8], target: &mut Target<'_>) -> Result<(), DecompressError> {
        if !input.starts_with(&XERIAL_MAGIC) {
            return self.snappy_block(input, target);
        }
        let mut rest = input;
        while !rest.is_empty() {
            // Streams may be concatenated, each with its own header.
            if rest.starts_with(&XERIAL_MAGIC) {
                rest = rest
                    .get(XERIAL_HEADER..)
                    .ok_or_else(|| malformed(Codec::Snappy, &"the header is cut"))?;
                continue;
            }
            let (len, tail) = rest
                .split_first_chunk::<4>()
                .ok_or_else(|| malformed(Codec::Snappy, &"a chunk's length is cut"))?;
            let len = u32::from_be_bytes(*len) as usize;
            let (block, tail) = tail
                .split_at_checked(len)
                .ok_or_else(|| malformed(Codec::Snappy, &"a chunk is cut"))?;
            self.snappy_block(block, target)?;
            rest = tail;
        }
        Ok(())
    }

    fn snappy_block(
        &mut self,
        block: &[u8],
        target: &mut Target<'_>,
    ) -> Result<(), DecompressError> {
        let len =
            snap::raw::decompress_len(block).map_err(|error| malformed(Codec::Snappy, &error))?;
        // The block says how long it is: believed only as far as it can be true.
        if len > block.len().saturating_mul(SNAPPY_RATIO) {
            return Err(malformed(
                Codec::Snappy,
                &format_args!("{} bytes cannot make {len}", block.len()),
            ));
        }
        let room = target.room(len)?;
        let made = self
            .snappy
            .decompress(block, room)
            .map_err(|error| malformed(Codec::Snappy, &error))?;
        target.made(made);
        Ok(())
    }

    fn zstd(&mut self, input: &[u8], target: &mut Target<'_>) -> Result<(), DecompressError> {
        let fail = |error: std::io::Error| malformed(Codec::Zstd, &error);
        let decoder = match &mut self.zstd {
            Some(decoder) => decoder,
            // The window is bounded to 128 MiB by zstd itself.
            none => none.insert(zstd::stream::raw::Decoder::new().map_err(fail)?),
        };
        decoder.reinit().map_err(fail)?;
        let mut rest = input;
        loop {
            let room = target.room_for_some()?;
            let full = room.len();
            let status = decoder.run_on_buffers(rest, room).map_err(fail)?;
            target.made(status.bytes_written);
            rest = rest.get(status.bytes_read..).unwrap_or_default();
            if rest.is_empty() {
                if status.remaining == 0 {
                    return Ok(());
                }
                // All input is read, and the decoder had room left: what it
                // still waits for is not there.
                if status.bytes_written < full {
                    return Err(malformed(Codec::Zstd, &"the frame is cut"));
                }
            } else if status.bytes_read == 0 && status.bytes_written == 0 {
                return Err(malformed(Codec::Zstd, &"the frame leads nowhere"));
            }
        }
    }
}

/// The part of a buffer that one block may fill.
struct Target<'a> {
    output: &'a mut Buffer,
    before: usize,
    limit: usize,
}

impl Target<'_> {
    fn left(&self) -> usize {
        self.limit.saturating_sub(self.output.len() - self.before)
    }

    /// Exactly `len` bytes of room.
    fn room(&mut self, len: usize) -> Result<&mut [u8], DecompressError> {
        if len > self.left() {
            return Err(DecompressError::TooLarge { limit: self.limit });
        }
        Ok(self.output.spare(len).get_mut(..len).unwrap_or_default())
    }

    /// As much room as is there, or a step of it. Never empty: one byte beyond
    /// the limit is given, so that a block that ends exactly there can say so.
    fn room_for_some(&mut self) -> Result<&mut [u8], DecompressError> {
        let left = self.left();
        if self.output.len() - self.before > self.limit {
            return Err(DecompressError::TooLarge { limit: self.limit });
        }
        let room = self.output.spare(STEP.min(left + 1));
        let len = room.len().min(left + 1);
        Ok(room.get_mut(..len).unwrap_or_default())
    }

    fn made(&mut self, bytes: usize) {
        self.output.advance(bytes);
    }
}

fn malformed(codec: Codec, what: &dyn std::fmt::Display) -> DecompressError {
    DecompressError::Malformed {
        codec,
        what: what.to_string(),
    }
}

fn gzip(input: &[u8], target: &mut Target<'_>) -> Result<(), DecompressError> {
    // Several members are one stream, as in Java's GZIPInputStream.
    let mut decoder = flate2::bufread::MultiGzDecoder::new(input);
    loop {
        let made = decoder
            .read(target.room_for_some()?)
            .map_err(|error| malformed(Codec::Gzip, &error))?;
        if made == 0 {
            return Ok(());
        }
        target.made(made);
    }
}

/// Walks a frame and decompresses its blocks with the C library's block
/// decoder, straight into place: the frame decoder copies once more and is a
/// third slower.
///
/// Blocks that depend on each other are refused: Kafka's own clients and
/// brokers refuse them, so none are in a log. The frame's own checksums are
/// stepped over: the batch's CRC covers every byte of it.
fn lz4(input: &[u8], target: &mut Target<'_>) -> Result<(), DecompressError> {
    let fail = |what: &str| malformed(Codec::Lz4, &what);
    let mut rest = input;
    while !rest.is_empty() {
        let [m0, m1, m2, m3, flags, sizes, tail @ ..] = rest else {
            return Err(fail("the frame's header is cut"));
        };
        if [*m0, *m1, *m2, *m3] != LZ4_MAGIC {
            return Err(fail("the frame's magic number is missing"));
        }
        if flags >> 6 != 1 {
            return Err(fail("the frame's version is not 1"));
        }
        if flags & 0x20 == 0 {
            return Err(fail(
                "blocks that depend on each other are not allowed in Kafka",
            ));
        }
        let block_checksum = if flags & 0x10 != 0 { 4 } else { 0 };
        let content_size = if flags & 0x08 != 0 { 8 } else { 0 };
        let content_checksum = if flags & 0x04 != 0 { 4 } else { 0 };
        let dictionary = if flags & 0x01 != 0 { 4 } else { 0 };
        let largest = match (sizes >> 4) & 7 {
            4 => 64 << 10,
            5 => 256 << 10,
            6 => 1 << 20,
            7 => 4 << 20,
            _ => return Err(fail("the frame's block size is unknown")),
        };
        let header_checksum = 1;
        rest = tail
            .get(content_size + dictionary + header_checksum..)
            .ok_or_else(|| fail("the frame's header is cut"))?;
        loop {
            let (len, tail) = rest
                .split_first_chunk::<4>()
                .ok_or_else(|| fail("a block's length is cut"))?;
            let len = u32::from_le_bytes(*len);
            if len == 0 {
                rest = tail
                    .get(content_checksum..)
                    .ok_or_else(|| fail("the frame's checksum is cut"))?;
                break;
            }
            let stored = len & 0x8000_0000 != 0;
            let len = (len & 0x7fff_ffff) as usize;
            let (block, tail) = tail
                .split_at_checked(len)
                .ok_or_else(|| fail("a block is cut"))?;
            rest = tail
                .get(block_checksum..)
                .ok_or_else(|| fail("a block's checksum is cut"))?;
            if stored {
                target.room(len)?.copy_from_slice(block);
                target.made(len);
            } else {
                lz4_block(block, largest, target)?;
            }
        }
    }
    Ok(())
}

fn lz4_block(block: &[u8], largest: usize, target: &mut Target<'_>) -> Result<(), DecompressError> {
    let possible = largest.min(block.len().saturating_mul(LZ4_RATIO));
    let left = target.left();
    let room = target.room(possible.min(left))?;
    let size = i32::try_from(room.len()).unwrap_or(i32::MAX);
    let made = lz4::block::decompress_to_buffer(block, Some(size), room);
    match made {
        Ok(made) => {
            target.made(made);
            Ok(())
        }
        Err(_) if possible > left => Err(DecompressError::TooLarge {
            limit: target.limit,
        }),
        Err(error) => Err(malformed(Codec::Lz4, &error)),
    }
}
