//! prost's codec with small buffers.
//!
//! tonic allocates both buffers of a call when it starts, 8 KiB each, so a thousand idle streams would hold 16 MB.
//! These buffers start small and grow with the first message.

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Size of a new buffer, in bytes.
const BUFFER_BYTES: usize = 512;
/// Encoded bytes after which messages are sent even if more are ready. This is tonic's default.
const YIELD_BYTES: usize = 32 << 10;

/// The codec of all services.
#[derive(Clone, Debug)]
pub struct SmallBufferCodec<T, U>(std::marker::PhantomData<(T, U)>);

impl<T, U> Default for SmallBufferCodec<T, U> {
    fn default() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<T, U> Codec for SmallBufferCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }
}
