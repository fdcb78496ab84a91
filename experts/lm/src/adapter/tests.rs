use super::*;
use crate::model::{Step, tiny};
use candle_core::Device;

const NAME: &str = "blk.1.ffn_down";

/// Factors for one matrix of the tiny model: 64 outputs, 112 inputs, rank 2.
fn factors(dtype: DType) -> HashMap<String, Tensor> {
    let random = |rows, columns| {
        Tensor::randn(0f32, 0.3, (rows, columns), &Device::Cpu)
            .unwrap()
            .to_dtype(dtype)
            .unwrap()
    };
    HashMap::from([
        (format!("{NAME}.lora_a"), random(2, 112)),
        (format!("{NAME}.lora_b"), random(64, 2)),
    ])
}

fn metadata() -> HashMap<String, String> {
    [
        ("format", FORMAT),
        ("rank", "2"),
        ("alpha", "6"),
        ("base", "tiny"),
        ("base_width", "64"),
        ("base_layers", "3"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn load(
    tensors: &HashMap<String, Tensor>,
    metadata: HashMap<String, String>,
    model: &LanguageModel,
) -> Result<Adapter> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("adapter.safetensors");
    safetensors::serialize_to_file(tensors, Some(metadata), &path).unwrap();
    Adapter::load(&path, model)
}

fn logits(model: &LanguageModel, adapter: Option<(&Adapter, f32)>) -> Vec<f32> {
    let mut cache = model.new_cache(None, 3).unwrap();
    let step = Step {
        cache: &mut cache,
        tokens: &[1, 2, 3],
        adapter,
        wants_logits: true,
    };
    model.forward(&mut [step]).unwrap().remove(0).unwrap()
}

#[test]
fn projections_are_written_as_in_tensor_names() {
    for projection in Projection::ALL {
        let written = serde_json::to_value(projection).unwrap();
        assert_eq!(written, projection.name());
        let read: Projection = serde_json::from_value(written).unwrap();
        assert_eq!(read, projection);
    }
}

#[test]
fn a_loaded_adapter_equals_the_one_it_was_written_from() {
    let model = tiny::model();
    for dtype in [DType::F32, DType::F16] {
        let tensors = factors(dtype);
        let built = Adapter::from_tensors(&tensors, 2, 6.0, "tiny", &model).unwrap();
        let loaded = load(&tensors, metadata(), &model).unwrap();
        assert_eq!((loaded.rank(), loaded.alpha(), loaded.base()), (2, 6.0, "tiny"));
        let adapted = logits(&model, Some((&loaded, 0.7)));
        assert_eq!(adapted, logits(&model, Some((&built, 0.7))));
        assert_ne!(adapted, logits(&model, None));
    }
}

#[test]
fn metadata_that_do_not_fit_are_named() {
    let model = tiny::model();
    let wrong = [
        ("format", Some("other/9"), "other/9"),
        ("format", None, "format"),
        ("rank", Some("two"), "rank"),
        ("rank", Some("0"), "rank"),
        ("alpha", Some("NaN"), "alpha"),
        ("alpha", None, "alpha"),
        ("base", None, "base"),
        ("base_width", Some("576"), "base_width 576"),
        ("base_layers", Some("30"), "base_layers 30"),
    ];
    for (key, value, expected) in wrong {
        let mut metadata = metadata();
        match value {
            Some(value) => metadata.insert(key.to_owned(), value.to_owned()),
            None => metadata.remove(key),
        };
        let error = load(&factors(DType::F32), metadata, &model).unwrap_err();
        assert!(matches!(error, LmError::BadFile { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{key}: {error}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let model = tiny::model();
    let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let (a, b) = (format!("{NAME}.lora_a"), format!("{NAME}.lora_b"));
    let changes: [(&str, Option<Tensor>, &str); 7] = [
        (&a, None, &a),
        (&b, None, &b),
        (&a, Some(zeros((2, 64))), "[2, 112]"),
        (&b, Some(zeros((64, 3))), "[64, 2]"),
        (&b, Some(zeros((64, 2)).to_dtype(DType::F64).unwrap()), "F64"),
        (
            "blk.3.ffn_down.lora_a",
            Some(zeros((2, 112))),
            "blk.3.ffn_down.lora_a",
        ),
        ("surprise", Some(zeros((1, 1))), "surprise"),
    ];
    for (name, tensor, expected) in changes {
        let mut tensors = factors(DType::F32);
        match tensor {
            Some(tensor) => tensors.insert(name.to_owned(), tensor),
            None => tensors.remove(name),
        };
        let error = load(&tensors, metadata(), &model).unwrap_err();
        assert!(matches!(error, LmError::BadFile { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
    assert!(load(&HashMap::new(), metadata(), &model).is_err());
}

#[test]
fn files_that_are_no_adapter_are_named() {
    let model = tiny::model();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("adapter.safetensors");
    assert!(matches!(
        Adapter::load(&path, &model).unwrap_err(),
        LmError::Io { .. }
    ));
    safetensors::serialize_to_file(&factors(DType::F32), Some(metadata()), &path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for length in [0, 7, 8, 100, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = Adapter::load(&path, &model).unwrap_err();
        assert!(matches!(error, LmError::BadFile { .. }), "{error}");
        assert!(error.to_string().contains("adapter.safetensors"), "{error}");
    }
}
