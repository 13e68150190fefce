//! Numbers of a tensor on their way to the host.

#[cfg(feature = "cuda")]
use crate::cuda;
use candle_core::{Result, Tensor};

/// The numbers of a tensor, which come while other work is asked for: on a GPU, reading them at once would wait for all
/// work that was asked for before.
pub struct Fetch(Way);

enum Way {
    Here(Tensor),
    #[cfg(feature = "cuda")]
    Coming(cuda::Download),
}

impl Fetch {
    /// Asks for the numbers of `tensor`.
    ///
    /// # Errors
    /// When its device cannot give them.
    pub fn start(tensor: &Tensor) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = cuda::Gpu::with(tensor)? {
            let read = cuda::Read::of(tensor)?;
            // SAFETY: the tensor has so many numbers; memory that is freed is taken only by what is asked for later.
            let coming = unsafe { gpu.start_download(read.pointer, tensor.elem_count())? };
            return Ok(Self(Way::Coming(coming)));
        }
        Ok(Self(Way::Here(tensor.clone())))
    }

    /// The numbers in their order.
    ///
    /// # Errors
    /// When they cannot be had.
    pub fn finish(self) -> Result<Vec<f32>> {
        match self.0 {
            Way::Here(tensor) => tensor.flatten_all()?.to_vec1(),
            #[cfg(feature = "cuda")]
            Way::Coming(coming) => coming.finish(),
        }
    }
}
