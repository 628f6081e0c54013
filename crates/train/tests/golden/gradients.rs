//! The gradients of every network against PyTorch's, on the golden checkpoints (`tools/reference/gradients.py`).

use candle_core::{DType, Device, Tensor, Var};
use pixart_nn::controlnet::{ControlNet, ControlNetConfig};
use pixart_nn::recompute::Recomputation;
use pixart_nn::t5::{T5Config, T5Encoder};
use pixart_nn::transformer::{PixArtTransformer, SizeConditions, TransformerConfig};
use pixart_nn::vae::{AutoencoderKl, VaeConfig};
use pixart_train::Parameters;
use pixart_weights::{Part, PipelineFolder, open_part};

use crate::{Result, check_all, check_inputs, check_loss, fixtures, golden};

#[test]
fn transformers() -> Result {
    let kinds = [("alpha-256", false, false), ("alpha-1024", true, false), ("alpha-1024", true, true)];
    for (name, has_sizes, recomputes) in kinds {
        let folder = PipelineFolder::open(fixtures().join("checkpoints").join(name))?;
        let config: TransformerConfig = folder.config(Part::Transformer)?;
        let inputs = golden(&format!("networks/transformer-{name}"))?;
        let golden = golden(&format!("training/gradients-transformer-{name}"))?;
        let input = |tensor: &str| &inputs[&format!("wide.{tensor}")];
        let weights = folder.weights(Part::Transformer, DType::F32)?;
        let parameters = Parameters::stored(weights, &Device::Cpu);
        let transformer = PixArtTransformer::new(&config, parameters.builder(DType::F32))?;
        let recomputation = Recomputation::new();
        let transformer = if recomputes { transformer.recomputing(&recomputation) } else { transformer };

        let latents = Var::from_tensor(input("hidden_states"))?;
        let embeds = Var::from_tensor(input("encoder_hidden_states"))?;
        let text = transformer.project_text(&embeds, Some(input("encoder_attention_mask")))?;
        let size = match has_sizes {
            true => Some(SizeConditions {
                resolution: input("resolution").clone(),
                aspect_ratio: input("aspect_ratio").clone(),
            }),
            false => None,
        };
        let output = transformer.forward(&latents, input("timestep"), &text, size.as_ref())?;
        let loss = (output * &golden["weights.output"])?.sum_all()?;
        check_loss(&golden, &loss)?;
        let mut gradients = loss.backward()?;
        let of_first_block =
            &parameters.all().into_iter().find(|(name, _)| name.contains("blocks.0.")).ok_or("no block")?;
        assert_eq!(gradients.get(&of_first_block.1).is_none(), recomputes, "blocks are recomputed");
        recomputation.add_to(&mut gradients)?;
        check_all(&golden, "gradient.", &parameters, &gradients)?;
        check_inputs(&golden, &gradients, &[("hidden_states", &latents), ("encoder_hidden_states", &embeds)])?;
    }
    Ok(())
}

#[test]
fn text_encoder() -> Result {
    let folder = PipelineFolder::open(fixtures().join("checkpoints/alpha-256"))?;
    let config: T5Config = folder.config(Part::TextEncoder)?;
    let inputs = golden("networks/text_encoder-alpha-256")?;
    let golden = golden("training/gradients-text_encoder-alpha-256")?;
    let weights = folder.weights(Part::TextEncoder, DType::F32)?;
    let parameters = Parameters::stored(weights, &Device::Cpu);
    let encoder = T5Encoder::new(&config, parameters.builder(DType::F32))?;
    let output = encoder.forward(&inputs["input_ids"].to_dtype(DType::U32)?, &inputs["attention_mask"])?;
    let loss = (output * &golden["weights.last_hidden_state"])?.sum_all()?;
    check_loss(&golden, &loss)?;
    check_all(&golden, "gradient.", &parameters, &loss.backward()?)
}

#[test]
fn autoencoder() -> Result {
    let folder = PipelineFolder::open(fixtures().join("checkpoints/alpha-256"))?;
    let config: VaeConfig = folder.config(Part::Vae)?;
    let inputs = golden("networks/vae-alpha-256")?;
    let golden = golden("training/gradients-vae-alpha-256")?;
    let weights = folder.weights(Part::Vae, DType::F32)?;
    let parameters = Parameters::stored(weights, &Device::Cpu);
    let vae = AutoencoderKl::new(&config, parameters.builder(DType::F32))?;
    let (image, latents) = (Var::from_tensor(&inputs["even.image"])?, Var::from_tensor(&inputs["even.latents"])?);
    let posterior = vae.encode(&image)?;
    let decoded = vae.decode(&latents)?;
    let weighted = |output: Tensor, name: &str| (output * &golden[&format!("weights.{name}")])?.sum_all();
    let loss =
        ((weighted(posterior.mean, "mean")? + weighted(posterior.logvar, "logvar")?)? + weighted(decoded, "decoded")?)?;
    check_loss(&golden, &loss)?;
    let gradients = loss.backward()?;
    check_all(&golden, "gradient.", &parameters, &gradients)?;
    check_inputs(&golden, &gradients, &[("image", &image), ("latents", &latents)])
}

/// With a base that is trained too, whose inputs have gradients, and with one that stays, as it does when a ControlNet is
/// trained; with blocks kept and computed again.
#[test]
fn controlnet() -> Result {
    let folder = fixtures().join("control");
    let inputs = golden("control/values")?;
    let golden = golden("training/gradients-control")?;
    let input = |tensor: &str| &inputs[&format!("two.{tensor}")];
    let (config, base) = open_part::<TransformerConfig>(&folder.join("base"), Part::Transformer, DType::F32)?;
    for (frozen, recomputes) in [(false, false), (true, false), (true, true)] {
        let (_, weights) = open_part::<ControlNetConfig>(&folder.join("adapter"), Part::ControlNet, DType::F32)?;
        let parameters = Parameters::stored(weights, &Device::Cpu);
        let control = ControlNet::new(&ControlNetConfig { num_layers: 2 }, &config, parameters.builder(DType::F32))?;
        let builder = match frozen {
            true => base.named(DType::F32, &Device::Cpu),
            false => Parameters::stored(base.clone(), &Device::Cpu).builder(DType::F32),
        };
        let transformer = PixArtTransformer::new(&config, builder)?.with_control(control)?;
        let recomputation = Recomputation::new();
        let transformer = if recomputes { transformer.recomputing(&recomputation) } else { transformer };

        let (latents, condition) = (Var::from_tensor(input("hidden_states"))?, Var::from_tensor(input("condition"))?);
        let of = |variable: &Var| if frozen { variable.as_detached_tensor() } else { variable.as_tensor().clone() };
        let text = transformer.project_text(input("encoder_hidden_states"), Some(input("encoder_attention_mask")))?;
        let followed = transformer.condition(&of(&condition), 1.0)?;
        let timestep = input("timestep").to_dtype(DType::F32)?;
        let output = transformer.forward_controlled(&of(&latents), &timestep, &text, None, Some(&followed))?;
        let loss = (output * &golden["weights.output"])?.sum_all()?;
        check_loss(&golden, &loss)?;
        let mut gradients = loss.backward()?;
        recomputation.add_to(&mut gradients)?;
        check_all(&golden, "gradient.", &parameters, &gradients)?;
        if !frozen {
            check_inputs(&golden, &gradients, &[("hidden_states", &latents), ("condition", &condition)])?;
        }
    }
    Ok(())
}
