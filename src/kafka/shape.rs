//! Whether a frame can be what it claims to be, before anything decodes it.
//!
//! The decoder of `kafka-protocol` reserves memory by the lengths that it finds
//! on the wire: 72 bytes of a Metadata answer made it ask for 206 GB and the
//! process was aborted. A broker can be broken, and what answers on a port need
//! not be a broker. So a frame is walked first: a table says what each message
//! consists of, and every count and length must fit in the bytes that are left.
//! The walk allocates nothing and takes time in proportion to the frame.
//!
//! After the walk every element of an array is really there. Two more things
//! are checked so that the decoder's memory is bounded by the frame. A known
//! tagged field must be as long as it says, because the decoder ignores that
//! length. And what is small on the wire may be large in memory: an empty text
//! is one byte and becomes 32, an unknown tagged field of two bytes becomes a
//! node of a map. So the walk adds up what the decoder is going to hold, and
//! refuses a frame that makes more of it than one with real content would.

use std::fmt;

/// What a field consists of on the wire.
#[derive(Debug)]
pub(super) enum Shape {
    /// That many bytes: integers, booleans, ids.
    Fixed(usize),
    /// A length and that many bytes, possibly null: two bytes of length, or a
    /// varint in the compact form.
    String,
    /// As [`Shape::String`], with four bytes of length.
    Bytes,
    /// A count and that many elements, possibly null.
    Array(&'static Shape),
    /// Fields one after the other and, in flexible versions, tagged ones.
    Struct(&'static Struct),
    /// A byte that says whether fields follow, and the fields where it is 1.
    Optional(&'static Struct),
}

impl Shape {
    /// Bytes that a decoded value of this shape takes where it stands, without
    /// what it points to and without padding.
    pub(super) fn size_in_memory(&self) -> usize {
        match self {
            Self::Fixed(bytes) => *bytes,
            Self::String | Self::Bytes => TEXT,
            Self::Array(_) => VEC,
            Self::Struct(of) | Self::Optional(of) => {
                let fields = of.fields.iter().map(|field| &field.shape);
                let tagged = of.tagged.iter().map(|field| &field.shape);
                fields
                    .chain(tagged)
                    .map(Self::size_in_memory)
                    .sum::<usize>()
                    + MAP
            }
        }
    }
}

/// The fields of a message or of a part of it.
#[derive(Debug)]
pub(super) struct Struct {
    pub(super) fields: &'static [Field],
    pub(super) tagged: &'static [Tagged],
}

/// A field and the versions that have it.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) from: i16,
    pub(super) to: i16,
    pub(super) shape: Shape,
}

/// A tagged field that the decoder knows, and the first version that has it.
#[derive(Debug)]
pub(super) struct Tagged {
    pub(super) name: &'static str,
    pub(super) tag: u32,
    pub(super) from: i16,
    pub(super) shape: Shape,
}

/// A whole answer, without its header.
#[derive(Debug)]
pub(super) struct Answer {
    /// First version with compact lengths and tagged fields.
    pub(super) flexible: i16,
    pub(super) body: Struct,
}

/// A field of all versions.
pub(super) const fn always(name: &'static str, shape: Shape) -> Field {
    between(name, 0, i16::MAX, shape)
}

/// A field from version `from` on.
pub(super) const fn since(name: &'static str, from: i16, shape: Shape) -> Field {
    between(name, from, i16::MAX, shape)
}

/// A field of the versions `from..=to`.
pub(super) const fn between(name: &'static str, from: i16, to: i16, shape: Shape) -> Field {
    Field {
        name,
        from,
        to,
        shape,
    }
}

/// A frame whose lengths do not add up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Misfit {
    /// The field at which it shows.
    pub(crate) field: &'static str,
    /// Where in the body that field's content would begin.
    pub(crate) at: usize,
    pub(crate) problem: Problem,
}

/// What does not add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// More bytes or elements than bytes are left.
    Beyond { claimed: u64, left: usize },
    /// A length below -1.
    Negative(i64),
    /// A varint of more than 32 bits.
    Varint,
    /// A tagged field that is longer or shorter than it says.
    TagLength { claimed: u32, taken: usize },
    /// A tag that this version of the message does not have.
    Tag(u32),
    /// So many bytes would be held for a frame that has reason for fewer.
    TooMuchMemory { needed: u64, limit: u64 },
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "field {} at byte {}: ", self.field, self.at)?;
        match self.problem {
            Problem::Beyond { claimed, left } => {
                write!(f, "{claimed} claimed where {left} bytes are left")
            }
            Problem::Negative(length) => write!(f, "a length of {length}"),
            Problem::Varint => f.write_str("a varint of more than 32 bits"),
            Problem::TagLength { claimed, taken } => {
                write!(f, "a tagged field of {claimed} bytes that takes {taken}")
            }
            Problem::Tag(tag) => write!(f, "tag {tag}, which this version does not have"),
            Problem::TooMuchMemory { needed, limit } => write!(
                f,
                "{needed} bytes of memory would be needed where {limit} are plausible"
            ),
        }
    }
}

impl std::error::Error for Misfit {}

/// What the decoder's text, array and map of unknown tagged fields take where
/// they stand.
const TEXT: usize = 32;
const VEC: usize = 24;
const MAP: usize = 24;
/// The first unknown tagged field of a map makes a node with room for eleven.
const MAP_NODE: usize = 416;

/// Memory that any frame may need, and the times of its own length beyond that.
/// Answers with real content need up to eight times their length (many groups
/// with short names).
const FREE_MEMORY: u64 = 64 * 1024;
const MEMORY_PER_BYTE: u64 = 16;

/// Checks that `body`, an answer without its header, has room for all that it
/// claims to hold. Returns how many bytes it takes; what follows is ignored,
/// as the decoders do.
pub(super) fn check(body: &[u8], answer: &'static Answer, version: i16) -> Result<usize, Misfit> {
    let mut walk = Walk {
        body,
        at: 0,
        version,
        flexible: version >= answer.flexible,
        memory: 0,
    };
    walk.fields(&answer.body)?;
    Ok(walk.at)
}

/// Checks the tagged fields that end a flexible header, and returns how many
/// bytes they take.
pub(super) fn check_tags(bytes: &[u8]) -> Result<usize, Misfit> {
    let mut walk = Walk {
        body: bytes,
        at: 0,
        version: 0,
        flexible: true,
        memory: 0,
    };
    walk.tags(&[])?;
    Ok(walk.at)
}

struct Walk<'a> {
    body: &'a [u8],
    at: usize,
    version: i16,
    flexible: bool,
    /// What the decoder is going to hold of what was walked.
    memory: u64,
}

impl Walk<'_> {
    fn fields(&mut self, of: &'static Struct) -> Result<(), Misfit> {
        for field in of.fields {
            if (field.from..=field.to).contains(&self.version) {
                self.shape(field.name, &field.shape)?;
            }
        }
        if self.flexible {
            self.tags(of.tagged)?;
        }
        Ok(())
    }

    fn shape(&mut self, name: &'static str, shape: &'static Shape) -> Result<(), Misfit> {
        match shape {
            Shape::Fixed(bytes) => self.skip(name, *bytes as u64),
            Shape::String => {
                let length = self.length(name, 2)?;
                self.skip(name, length.unwrap_or(0))
            }
            Shape::Bytes => {
                let length = self.length(name, 4)?;
                self.skip(name, length.unwrap_or(0))
            }
            Shape::Array(element) => {
                let count = self.length(name, 4)?.unwrap_or(0);
                // No element takes less than a byte, so a count beyond the
                // bytes left is refused before the first of them.
                let left = self.left();
                if count > left as u64 {
                    return Err(self.misfit(
                        name,
                        Problem::Beyond {
                            claimed: count,
                            left,
                        },
                    ));
                }
                self.hold(name, count * element.size_in_memory() as u64)?;
                for _ in 0..count {
                    self.shape(name, element)?;
                }
                Ok(())
            }
            Shape::Struct(of) => self.fields(of),
            Shape::Optional(of) => {
                let start = self.at;
                self.skip(name, 1)?;
                if self.body[start] == 1 {
                    self.fields(of)?;
                }
                Ok(())
            }
        }
    }

    fn tags(&mut self, known: &'static [Tagged]) -> Result<(), Misfit> {
        const NAME: &str = "tagged fields";
        let count = self.varint(NAME)?;
        for _ in 0..count {
            let tag = self.varint(NAME)?;
            let claimed = self.varint(NAME)?;
            let Some(field) = known.iter().find(|field| field.tag == tag) else {
                self.hold(NAME, MAP_NODE as u64)?;
                self.skip(NAME, u64::from(claimed))?;
                continue;
            };
            if self.version < field.from {
                return Err(self.misfit(field.name, Problem::Tag(tag)));
            }
            let start = self.at;
            self.shape(field.name, &field.shape)?;
            let taken = self.at - start;
            if taken as u64 != u64::from(claimed) {
                return Err(self.misfit(field.name, Problem::TagLength { claimed, taken }));
            }
        }
        Ok(())
    }

    /// A length or count as the version writes it; `None` for null.
    fn length(&mut self, name: &'static str, width: usize) -> Result<Option<u64>, Misfit> {
        if self.flexible {
            return Ok(u64::from(self.varint(name)?).checked_sub(1));
        }
        let start = self.at;
        self.skip(name, width as u64)?;
        let length = match self.body[start..self.at] {
            [a, b] => i64::from(i16::from_be_bytes([a, b])),
            [a, b, c, d] => i64::from(i32::from_be_bytes([a, b, c, d])),
            _ => -1,
        };
        match u64::try_from(length) {
            Ok(length) => Ok(Some(length)),
            Err(_) if length == -1 => Ok(None),
            Err(_) => Err(self.misfit(name, Problem::Negative(length))),
        }
    }

    fn varint(&mut self, name: &'static str) -> Result<u32, Misfit> {
        let mut value = 0_u64;
        for index in 0..5 {
            let start = self.at;
            self.skip(name, 1)?;
            let byte = self.body[start];
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                return u32::try_from(value).map_err(|_| self.misfit(name, Problem::Varint));
            }
        }
        Err(self.misfit(name, Problem::Varint))
    }

    fn skip(&mut self, name: &'static str, bytes: u64) -> Result<(), Misfit> {
        let left = self.left();
        match usize::try_from(bytes) {
            Ok(bytes) if bytes <= left => {
                self.at += bytes;
                Ok(())
            }
            _ => Err(self.misfit(
                name,
                Problem::Beyond {
                    claimed: bytes,
                    left,
                },
            )),
        }
    }

    fn left(&self) -> usize {
        self.body.len() - self.at
    }

    /// Adds to what the decoder is going to hold. Called before what it stands
    /// for is walked, since the decoder reserves before it reads.
    fn hold(&mut self, name: &'static str, bytes: u64) -> Result<(), Misfit> {
        self.memory += bytes;
        let limit = FREE_MEMORY + MEMORY_PER_BYTE * self.body.len() as u64;
        if self.memory > limit {
            let needed = self.memory;
            return Err(self.misfit(name, Problem::TooMuchMemory { needed, limit }));
        }
        Ok(())
    }

    fn misfit(&self, field: &'static str, problem: Problem) -> Misfit {
        Misfit {
            field,
            at: self.at,
            problem,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static ELEMENT: Struct = Struct {
        fields: &[
            always("id", Shape::Fixed(4)),
            since("name", 1, Shape::String),
        ],
        tagged: &[Tagged {
            name: "extra",
            tag: 0,
            from: 2,
            shape: Shape::Fixed(2),
        }],
    };
    static ANSWER: Answer = Answer {
        flexible: 1,
        body: Struct {
            fields: &[always("elements", Shape::Array(&Shape::Struct(&ELEMENT)))],
            tagged: &[],
        },
    };

    fn problem(body: &[u8], version: i16) -> Problem {
        check(body, &ANSWER, version).unwrap_err().problem
    }

    #[test]
    fn a_frame_with_room_for_all_it_claims_is_taken_whole() {
        assert_eq!(check(&[0, 0, 0, 1, 0, 0, 0, 9], &ANSWER, 0), Ok(8));
        assert_eq!(check(&[255, 255, 255, 255], &ANSWER, 0), Ok(4));
        // One element: id, a string of one letter, one tagged field of 2 bytes.
        let body = [2, 0, 0, 0, 9, 2, b'a', 1, 0, 2, 7, 7, 0];
        assert_eq!(check(&body, &ANSWER, 2), Ok(body.len()));
    }

    #[test]
    fn a_count_that_cannot_fit_is_refused_before_its_first_element() {
        assert_eq!(
            problem(&[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0], 0),
            Problem::Beyond {
                claimed: 0x7fff_ffff,
                left: 4
            }
        );
        assert_eq!(
            problem(&[0xff, 0xff, 0xff, 0xff, 0x0f, 0], 1),
            Problem::Beyond {
                claimed: 0xffff_fffe,
                left: 1
            }
        );
    }

    #[test]
    fn negative_lengths_and_long_varints_are_refused() {
        assert_eq!(problem(&[255, 255, 255, 254], 0), Problem::Negative(-2));
        assert_eq!(problem(&[0xff; 6], 1), Problem::Varint);
        assert_eq!(problem(&[0xff, 0xff, 0xff, 0xff, 0x1f], 1), Problem::Varint);
    }

    #[test]
    fn a_known_tagged_field_must_be_as_long_as_it_says() {
        let body = [2, 0, 0, 0, 9, 2, b'a', 1, 0, 3, 7, 7, 7, 0];
        assert_eq!(
            problem(&body, 2),
            Problem::TagLength {
                claimed: 3,
                taken: 2
            }
        );
        assert_eq!(problem(&body, 1), Problem::Tag(0));
    }

    #[test]
    fn an_optional_part_is_there_where_its_byte_says_so() {
        static OPTIONAL: Answer = Answer {
            flexible: 1,
            body: Struct {
                fields: &[always("element", Shape::Optional(&ELEMENT))],
                tagged: &[],
            },
        };
        assert_eq!(check(&[1, 0, 0, 0, 9], &OPTIONAL, 0), Ok(5));
        assert_eq!(check(&[255], &OPTIONAL, 0), Ok(1));
        assert!(check(&[1, 0, 0, 0], &OPTIONAL, 0).is_err());
        assert!(check(&[], &OPTIONAL, 0).is_err());
    }

    #[test]
    fn what_is_small_on_the_wire_and_large_in_memory_is_bounded_by_the_frame() {
        static TEXTS: Answer = Answer {
            flexible: 0,
            body: Struct {
                fields: &[always("texts", Shape::Array(&Shape::String))],
                tagged: &[],
            },
        };
        // Unknown tagged fields of two bytes each.
        let mut body = vec![1];
        body.extend([0xc0, 0x0c]); // 1,600 of them
        for _ in 0..1600 {
            body.extend([0x09, 0x00]);
        }
        assert!(matches!(problem(&body, 1), Problem::TooMuchMemory { .. }));

        // Empty texts, a byte each, which become 32.
        let texts = |count: u32, text: &[u8]| {
            let mut body = vec![0x80, 0x80, 0x80, 0x80, 0];
            for (place, byte) in body.iter_mut().enumerate().take(4) {
                *byte |= u8::try_from(((count + 1) >> (7 * place)) & 0x7f).unwrap();
            }
            for _ in 0..count {
                body.extend(text);
            }
            body.push(0);
            body
        };
        let few = texts(1_000, &[1]);
        assert_eq!(check(&few, &TEXTS, 0), Ok(few.len()));
        let many = texts(100_000, &[1]);
        assert_eq!(
            check(&many, &TEXTS, 0).unwrap_err().problem,
            Problem::TooMuchMemory {
                needed: 3_200_000,
                limit: 64 * 1024 + 16 * many.len() as u64
            }
        );
        let real = texts(100_000, &[3, b'a', b'b']);
        assert_eq!(check(&real, &TEXTS, 0), Ok(real.len()));
    }
}
