//! Trees of files as tar streams, for both ends of `mvm instance cp`.
//!
//! [`pack`] writes a file, a symbolic link or a folder with everything in it; [`unpack`] writes such a stream, or any tar
//! archive, below a [`Target`] and nowhere else, whatever the stream says. Where a copy lands is decided as `docker cp`
//! decides it. Both block; [`pieces`] connects them with streams that do not.

mod error;
mod pack;
mod pieces;
mod target;
mod unpack;

pub use error::{Error, Result};
pub use pack::{LeftOut, Source};
pub use pieces::{PieceReader, PieceWriter, Pieces, pieces_from, pieces_to};
pub use target::Target;
pub use unpack::{Counts, Permissions, unpack};
