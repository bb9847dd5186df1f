//! What the tests share.

pub mod deltas;
pub mod reference;
pub mod torch;
