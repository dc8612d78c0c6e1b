//! The three models inside the program. `builtin/README.md` says how they were made.

use crate::ModelFiles;

/// Names that `builtin:` accepts.
pub const BUILTIN_MODELS: [&str; 3] = ["tiny-phi", "tiny-llada", "tiny-dream"];

macro_rules! files {
    ($folder:literal) => {
        &[
            ("config.json", include_bytes!(concat!("../builtin/", $folder, "/config.json"))),
            (
                "generation_config.json",
                include_bytes!(concat!("../builtin/", $folder, "/generation_config.json")),
            ),
            (
                "model.safetensors",
                include_bytes!(concat!("../builtin/", $folder, "/model.safetensors")),
            ),
            ("tokenizer.json", include_bytes!("../builtin/tokenizer.json")),
            ("tokenizer_config.json", include_bytes!("../builtin/tokenizer_config.json")),
        ]
    };
}

/// The files of a built-in model, by the name after `builtin:`.
#[must_use]
pub fn builtin_files(name: &str) -> Option<ModelFiles> {
    let (name, files): (_, &[(&str, &[u8])]) = match name {
        "tiny-phi" => (BUILTIN_MODELS[0], files!("tiny-phi")),
        "tiny-llada" => (BUILTIN_MODELS[1], files!("tiny-llada")),
        "tiny-dream" => (BUILTIN_MODELS[2], files!("tiny-dream")),
        _ => return None,
    };
    Some(ModelFiles::Builtin { name, files })
}
