//! Weights in 8 bits: signed bytes beside a scale for each output, in safetensors files, written tensor by tensor.
//!
//! A layer `m` has `m.weight` (I8, of the shape that it had), `m.weight_scale` (F32, `[out]`), and, where a calibration found
//! them, `m.input_factors` (F32, `[in]`: what inputs are multiplied with), `m.outlier_columns` (I64) and `m.outlier_weight`
//! (BF16, `[out, columns]`: weights of inputs that are kept out of the rounding). `config.json` names the scheme.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use pixart_nn::ops::{ByteMatrix, quantise};
use pixart_nn::{ByteWeight, BytesByName, LowRank};
use serde_json::{Value, json};

use crate::mapped::MappedBytes;
use crate::{Error, Part, Result, StoredDtype, StoredTensor, Weights};

/// Where `config.json` names the scheme.
const CONFIG_KEY: &str = "quantization_config";
/// As what it does so.
const METHOD: &str = "pixart";

/// What is rounded to 8 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Weights and the inputs of layers; of a text encoder, weights alone.
    Int8,
    /// Weights alone.
    Int8Weights,
}

impl Scheme {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int8Weights => "int8-weights",
        }
    }

    /// The scheme that a `config.json` names, if it names one.
    ///
    /// # Errors
    /// Another program's quantisation; a scheme that there is not.
    pub fn of_config(path: &Path, config: &Value) -> Result<Option<Self>> {
        let Some(quantization) = config.get(CONFIG_KEY) else { return Ok(None) };
        let field = |name: &str| quantization.get(name).and_then(Value::as_str).unwrap_or_default();
        if field("quant_method") != METHOD {
            let reason = format!("is quantised by {:?}, which is not read here", field("quant_method"));
            return Err(Error::unsupported(path, reason));
        }
        field("scheme").parse().map(Some).map_err(|reason| Error::unsupported(path, reason))
    }

    /// `config`, which names this scheme.
    pub(crate) fn named_in(self, mut config: Value) -> Value {
        config[CONFIG_KEY] = json!({ "quant_method": METHOD, "scheme": self.name() });
        config
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scheme {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "int8" => Ok(Self::Int8),
            "int8-weights" => Ok(Self::Int8Weights),
            _ => Err(format!("there is no quantisation scheme {name:?}; known are int8 and int8-weights")),
        }
    }
}

/// Whether the tensor `name` of a part is one of those that are rounded to 8 bits: the weights of layers that take time and
/// memory. Embeddings, modulation, norms and the first and the last layer keep their digits.
pub fn is_rounded(part: Part, name: &str, shape: &[usize]) -> bool {
    let Some(layer) = name.strip_suffix(".weight") else { return false };
    match part {
        Part::TextEncoder => layer.starts_with("encoder.block.") && is_of_t5(layer),
        Part::Transformer => layer.starts_with("transformer_blocks.") && is_of_block(layer, shape),
        Part::ControlNet => layer.starts_with("controlnet_blocks.") && is_of_block(layer, shape),
        // The attention in the middle takes little time, and its rounding is seen in every pixel.
        Part::Vae => {
            let of_blocks = layer.starts_with("decoder.") || layer.starts_with("encoder.");
            of_blocks
                && shape.len() == 4
                && !layer.ends_with("coder.conv_in")
                && !layer.ends_with("coder.conv_out")
                && !layer.contains(".attentions.")
        }
    }
}

/// Whether this is a linear layer in a block of a T5 encoder.
fn is_of_t5(layer: &str) -> bool {
    let mut names = layer.rsplit('.');
    match (names.next(), names.next()) {
        (Some(name), Some("SelfAttention")) => ["q", "k", "v", "o"].contains(&name),
        (Some(name), Some("DenseReluDense")) => ["wi_0", "wi_1", "wo"].contains(&name),
        _ => false,
    }
}

/// Whether the inputs of the layer with the weight `name` are rounded too. Not those of a text encoder: it does not scale its
/// scores, and multiplies its hidden layers with each other, so that rounding is seen in every embedding; and it is gone
/// through once an image.
pub fn rounds_inputs(scheme: Scheme, name: &str) -> bool {
    scheme == Scheme::Int8 && !name.strip_suffix(".weight").is_some_and(is_of_t5)
}

/// Linear layers, but for norms of queries and keys.
fn is_of_block(layer: &str, shape: &[usize]) -> bool {
    shape.len() == 2 && !layer.contains("norm")
}

impl Weights {
    /// Rounds weights to 8 bits as they are read, those of [`is_rounded`]. Weights that are stored so stay as they are.
    pub fn rounded(mut self, part: Part, scheme: Scheme) -> Self {
        if self.scheme.is_none() {
            self.rounding = Some((part, scheme));
        }
        self
    }

    /// Bytes that all tensors take in memory, those that are not in 8 bits in `dtype`.
    pub fn bytes_in(&self, dtype: DType) -> u64 {
        let bytes = |(name, tensor): (&String, &StoredTensor)| {
            let rounded = self.rounding.is_some_and(|(part, _)| is_rounded(part, name, &tensor.shape));
            let of_each = if tensor.dtype == StoredDtype::I8 || rounded { 1 } else { dtype.size_in_bytes() };
            (tensor.shape.iter().product::<usize>() * of_each) as u64
        };
        self.tensors().iter().map(bytes).sum()
    }

    /// The scheme that these weights are stored in.
    pub fn scheme(&self) -> Option<Scheme> {
        self.scheme
    }

    /// Takes the scheme that the config beside the files names.
    ///
    /// # Errors
    /// It names one that there is not, or none though there are weights in 8 bits.
    pub(crate) fn with_scheme_of(mut self, config: &Path) -> Result<Self> {
        let json = if config.exists() { crate::read_json(config)? } else { Value::Null };
        self.scheme = Scheme::of_config(config, &json)?;
        let bytes = self.tensors().iter().find(|(_, tensor)| tensor.dtype == StoredDtype::I8);
        match (self.scheme, bytes) {
            (None, Some((name, tensor))) => {
                let reason = format!("holds {name:?} in 8 bits, but {} names no {CONFIG_KEY:?}", config.display());
                Err(Error::corrupt(self.path_of(tensor), reason))
            }
            _ => Ok(self),
        }
    }

    /// The scale of each row of a weight in 8 bits.
    fn scales(&self, name: &str, rows: usize) -> Result<Vec<f32>> {
        let key = format!("{name}_scale");
        let scales = self.tensor(&key, DType::F32, &Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        if scales.len() != rows {
            let path = self.tensors().get(&key).map(|tensor| self.path_of(tensor)).unwrap_or(Path::new(""));
            return Err(Error::Shape { path: path.into(), key, found: vec![scales.len()], wanted: vec![rows] });
        }
        Ok(scales)
    }

    /// The numbers that a weight in 8 bits stands for, f32; LoRAs are not in it.
    pub(crate) fn dequantised(&self, name: &str, stored: &StoredTensor, device: &Device) -> Result<Tensor> {
        let weight = self.stored_bytes(name, stored)?;
        let (rows, depth) = weight.matrix.shape();
        let mut values = Tensor::from_vec(weight.matrix.to_f32(), (rows, depth), device)?;
        if let Some(factors) = weight.input_factors {
            values = values.broadcast_mul(&Tensor::from_vec(factors, depth, device)?)?;
        }
        for LowRank { down, up } in weight.low_rank {
            values = (values + up.to_device(device)?.matmul(&down.to_device(device)?)?)?;
        }
        Ok(values.reshape(&stored.shape[..])?)
    }

    /// A weight that is stored in 8 bits, where it stands.
    fn stored_bytes(&self, name: &str, stored: &StoredTensor) -> Result<ByteWeight> {
        let rows = stored.shape.first().copied().unwrap_or(1);
        let depth = stored.shape.iter().skip(1).product();
        let scales = self.scales(name, rows)?;
        let bytes = MappedBytes::new(self.file_of(stored).clone(), stored.bytes.clone());
        let matrix = ByteMatrix::new(Arc::new(bytes), scales, depth);
        let mut weight = ByteWeight::new(matrix, self.scheme.is_some_and(|scheme| rounds_inputs(scheme, name)));
        let layer = name.strip_suffix("weight").unwrap_or(name);
        let optional = |end: &str| match self.tensors().contains_key(&format!("{layer}{end}")) {
            true => self.tensor(&format!("{layer}{end}"), DType::F32, &Device::Cpu).map(Some),
            false => Ok(None),
        };
        if let Some(factors) = optional("input_factors")? {
            weight.input_factors = Some(factors.to_vec1::<f32>()?);
        }
        if let (Some(columns), Some(up)) = (optional("outlier_columns")?, optional("outlier_weight")?) {
            let columns = columns.to_vec1::<f32>()?;
            let mut down = vec![0f32; columns.len() * depth];
            for (row, column) in columns.iter().enumerate() {
                match down.get_mut(row * depth + *column as usize) {
                    Some(x) if (*column as usize) < depth => *x = 1.0,
                    _ => {
                        let reason = format!("{layer}outlier_columns names column {column} of {depth}");
                        return Err(Error::corrupt(self.path_of(stored), reason));
                    }
                }
            }
            let down = Tensor::from_vec(down, (columns.len(), depth), &Device::Cpu)?;
            weight.low_rank.push(LowRank { down, up });
        }
        self.mark_read(name, stored);
        Ok(weight)
    }
}

impl BytesByName for Weights {
    fn bytes(&self, name: &str, (rows, depth): (usize, usize)) -> candle_core::Result<Option<ByteWeight>> {
        let Some(stored) = self.tensors().get(name) else { return Ok(None) };
        let found = (stored.shape.first().copied().unwrap_or(1), stored.shape.iter().skip(1).product());
        if found != (rows, depth) {
            // The tensor itself is asked for next, and its shape refused.
            return Ok(None);
        }
        let mut weight = match (stored.dtype, self.rounding) {
            (StoredDtype::I8, _) => self.stored_bytes(name, stored).map_err(candle_core::Error::wrap)?,
            (_, Some((part, scheme))) if is_rounded(part, name, &stored.shape) => {
                let tensor = self.uncorrected(name, DType::F32, &Device::Cpu).map_err(candle_core::Error::wrap)?;
                let matrix = quantise(&tensor.reshape((rows, depth))?)?;
                self.check_finite(name, stored, &matrix).map_err(candle_core::Error::wrap)?;
                ByteWeight::new(matrix, rounds_inputs(scheme, name))
            }
            _ => return Ok(None),
        };
        weight.low_rank.extend(self.corrections(name)?);
        // Keys and values of a text are computed once an image, so that it costs nothing to look at what they are made of.
        let of_text = name.ends_with(".attn2.to_k.weight") || name.ends_with(".attn2.to_v.weight");
        let finds_outliers = weight.rounds_inputs && of_text;
        Ok(Some(ByteWeight { finds_outliers, ..weight }))
    }
}

impl Weights {
    /// Refuses weights that are not all finite.
    pub(crate) fn check_finite(&self, name: &str, stored: &StoredTensor, matrix: &ByteMatrix) -> Result<()> {
        match matrix.scales().iter().position(|scale| !scale.is_finite()) {
            Some(row) => {
                let reason = format!("tensor {name:?} is not finite: NaN or infinity in row {row}");
                Err(Error::corrupt(self.path_of(stored), reason))
            }
            None => Ok(()),
        }
    }

    /// The LoRAs of a layer, with their strength.
    fn corrections(&self, name: &str) -> candle_core::Result<Vec<LowRank>> {
        self.loras().iter().filter_map(|lora| lora.correction(name)).collect()
    }
}
