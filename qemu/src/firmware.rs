//! Machines that boot the image by their firmware, from a CD or a USB stick.
//!
//! The image is the one that people get: the kernel's words reach it through SMBIOS, as an OEM string
//! that `boot/grub.cfg` looks for.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Context, Failure};
use crate::iso::{self, ISO};
use crate::machine::option_path;
use crate::qemu::script_output;
use crate::run_dir::RunDir;
use crate::settings::{Firmware, Media, Settings};

/// What the OEM string begins with.
const PREFIX: &str = "longshore:";

/// Has what the machine boots ready: the image, and UEFI's flash in the run directory. Gives QEMU's
/// arguments for it.
pub fn prepare(root: &Path, settings: &Settings, run_dir: &RunDir) -> Result<Vec<String>, Failure> {
    if settings.firmware == Firmware::Direct {
        return Ok(Vec::new());
    }
    iso::ensure(root, &settings.kernel)?;
    let mut flash = None;
    if settings.firmware == Firmware::Uefi {
        let found = script_output(&root.join("qemu/get-ovmf.sh"), &[])?;
        let (code, variables) = found
            .trim_end()
            .split_once('\n')
            .ok_or_else(|| Failure::run("get-ovmf.sh names no firmware"))?;
        let own = run_dir.variables();
        let copied = fs::read(variables).and_then(|bytes| fs::write(&own, bytes));
        copied.context(own.display())?;
        flash = Some((PathBuf::from(code), own));
    }
    Ok(arguments(
        settings,
        flash.as_ref().map(|(code, own)| (&**code, &**own)),
    ))
}

/// Fetches what is missing for machines that boot by their firmware.
pub fn fetch(root: &Path) -> Result<(), Failure> {
    for script in ["qemu/get-grub.sh", "qemu/get-ovmf.sh"] {
        script_output(&root.join(script), &[])?;
    }
    Ok(())
}

/// QEMU's arguments: flash, medium, words for the kernel.
fn arguments(settings: &Settings, flash: Option<(&Path, &Path)>) -> Vec<String> {
    let mut args = Vec::new();
    let mut add = |option: &str, value: String| args.extend([option.into(), value]);
    if let Some((code, variables)) = flash {
        let part =
            |file, access| format!("if=pflash,format=raw,file={}{access}", option_path(file));
        add("-drive", part(code, ",readonly=on"));
        add("-drive", part(variables, ""));
    }
    let medium = format!("if=none,id=medium,format=raw,readonly=on,file={ISO}");
    match settings.media {
        Media::Cd => {
            add("-drive", format!("{medium},media=cdrom"));
            add("-device", "ide-cd,drive=medium,bootindex=0".into());
        }
        Media::Usb => {
            add("-drive", medium);
            add("-device", "qemu-xhci".into());
            add("-device", "usb-storage,drive=medium,bootindex=0".into());
        }
    }
    let words = grub_words(&settings.command_line()).replace(',', ",,");
    add("-smbios", format!("type=11,value={PREFIX}{words}"));
    args
}

/// A kernel command line as GRUB reads it: the words that the kernel would make of it, each in single
/// quotes.
fn grub_words(line: &str) -> String {
    let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let escaped = (c == '\\')
            .then(|| chars.next_if(|next| matches!(next, '\\' | '"' | '\'')))
            .flatten();
        match (c, escaped) {
            ('"', None) => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() && !quoted => words.extend(word.take()),
            (c, escaped) => word.get_or_insert_default().push(escaped.unwrap_or(c)),
        }
    }
    words.extend(word);
    let quote = |word: String| format!("'{}'", word.replace('\'', r"'\''"));
    words.into_iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(media: Media) -> String {
        let settings = Settings {
            firmware: Firmware::Uefi,
            media,
            commands: Some("dma; audit".into()),
            append: "loglevel=debug".into(),
            ..Settings::default()
        };
        let flash = (
            Path::new("/a,b/code.fd"),
            Path::new("build/run/variables.fd"),
        );
        arguments(&settings, Some(flash)).join(" ")
    }

    #[test]
    fn the_image_is_a_cd_or_a_stick_and_words_go_by_smbios() {
        let (cd, stick) = (line(Media::Cd), line(Media::Usb));
        for part in [
            "file=/a,,b/code.fd,readonly=on",
            "if=pflash,format=raw,file=build/run/variables.fd ",
            "file=build/longshore.iso,media=cdrom",
            "ide-cd,drive=medium",
            "type=11,value=longshore:'run=dma; audit' 'loglevel=debug'",
        ] {
            assert!(cd.contains(part), "{part} not in {cd}");
        }
        assert!(stick.contains("usb-storage,drive=medium") && !stick.contains("ide-cd"));
        let plain = arguments(&Settings::default(), None).join(" ");
        assert!(!plain.contains("pflash") && plain.ends_with("value=longshore:"));
    }

    #[test]
    fn words_are_quoted_as_grub_reads_them() {
        for (line, words) in [
            ("", ""),
            ("a  b", "'a' 'b'"),
            (r#"run="a; $b" c"#, "'run=a; $b' 'c'"),
            (r#"run="it's \"so\"""#, r#"'run=it'\''s "so"'"#),
            (r#"open="a b"#, "'open=a b'"),
        ] {
            assert_eq!(grub_words(line), words, "{line}");
        }
    }
}
