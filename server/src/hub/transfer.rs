//! One file from the hub to the cache: resumed, checked, and only then under its name.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use ureq::http::{StatusCode, header};

use super::client::{Client, RemoteFile};
use super::error::Cause;

const CHUNK: usize = 256 << 10;
/// A connection that broke off is opened again if it brought at least this many bytes.
const WORTH_RETRYING: u64 = 64 << 10;

/// Which file of which repository.
pub(super) struct Wanted<'a> {
    pub(super) repository: &'a str,
    pub(super) commit: &'a str,
    pub(super) file: &'a str,
    pub(super) remote: &'a RemoteFile,
}

/// Brings a file to `blob`. What an earlier run left of it is kept and not asked for again.
pub(super) fn download(
    client: &Client,
    wanted: &Wanted<'_>,
    (blob, lock): (&Path, &Path),
    bar: &ProgressBar,
) -> Result<(), Cause> {
    let _held = hold(lock, bar)?;
    // Another process may have brought it while this one waited.
    if blob.exists() {
        return Ok(());
    }
    let partial = blob.with_extension("incomplete");
    let disk = |e| Cause::disk(&partial, e);
    let mut file =
        OpenOptions::new().read(true).append(true).create(true).open(&partial).map_err(disk)?;
    receive(client, wanted, (&mut file, &partial), bar)?;
    if let Some(expected) = wanted.remote.sha256() {
        let found = digest(&mut file).map_err(disk)?;
        if found != expected {
            // Resuming what is wrong would keep it wrong.
            std::fs::remove_file(&partial).map_err(disk)?;
            return Err(Cause::Digest { found, expected: expected.to_owned() });
        }
    }
    file.sync_all().map_err(disk)?;
    std::fs::rename(&partial, blob).map_err(disk)
}

/// One process at a time writes a file; the lock ends with the process.
fn hold(path: &Path, bar: &ProgressBar) -> Result<File, Cause> {
    let disk = |e| Cause::disk(path, e);
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let file = file.map_err(disk)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let name = bar.message();
            bar.set_message("waiting for another process");
            file.lock().map_err(disk)?;
            bar.set_message(name);
        }
        Err(TryLockError::Error(e)) => return Err(disk(e)),
    }
    Ok(file)
}

/// Requests the rest of the file until all of it is there.
fn receive(
    client: &Client,
    wanted: &Wanted<'_>,
    (file, path): (&mut File, &Path),
    bar: &ProgressBar,
) -> Result<(), Cause> {
    let disk = |e| Cause::disk(path, e);
    let size = wanted.remote.size;
    let mut have = file.metadata().map_err(disk)?.len();
    while have != size {
        if have > size {
            // Not a beginning of this file.
            file.set_len(0).map_err(disk)?;
            have = 0;
        }
        let (asked, before) = ((wanted.commit, wanted.file), have);
        let response =
            client.bytes(wanted.repository, asked, have).map_err(|cause| match cause {
                Cause::Unreachable { reason, .. } if have > 0 => {
                    Cause::Interrupted { have, size, reason }
                }
                other => other,
            })?;
        let (parts, body) = response.into_parts();
        let range = parts.headers.get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
        let from = match parts.status {
            StatusCode::PARTIAL_CONTENT => range.and_then(first_byte),
            StatusCode::OK => Some(0),
            _ => None,
        };
        if from != Some(have) {
            // The hub starts elsewhere, or knows no such range: from the beginning then.
            file.set_len(0).map_err(disk)?;
            if from != Some(0) {
                let found = parts.status.as_u16();
                let range = format!("{found} with range {range:?} instead of {have}-");
                return Err(Cause::Answer(range));
            }
            have = 0;
        }
        bar.set_position(have);
        match copy(body.into_reader(), file, (&mut have, size), bar) {
            Copied::All => {}
            Copied::TooMuch => {
                file.set_len(0).map_err(disk)?;
                return Err(Cause::Size { found: have, expected: size });
            }
            Copied::Disk(e) => return Err(disk(e)),
            // Counted from what was there before: a hub without ranges brings the same again.
            Copied::Broken(_) if have >= before + WORTH_RETRYING => {}
            Copied::Broken(reason) => return Err(Cause::Interrupted { have, size, reason }),
        }
    }
    Ok(())
}

enum Copied {
    All,
    TooMuch,
    Broken(String),
    Disk(io::Error),
}

fn copy(
    mut body: impl Read,
    file: &mut File,
    (have, size): (&mut u64, u64),
    bar: &ProgressBar,
) -> Copied {
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = match body.read(&mut buffer) {
            Ok(0) if *have == size => return Copied::All,
            Ok(0) => return Copied::Broken("the connection was closed".to_owned()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => {
                return Copied::Broken(e.to_string().replace(char::is_control, " "));
            }
        };
        if *have + n as u64 > size {
            *have += n as u64;
            return Copied::TooMuch;
        }
        if let Err(e) = file.write_all(&buffer[..n]) {
            return Copied::Disk(e);
        }
        *have += n as u64;
        bar.inc(n as u64);
    }
}

/// `7` of `bytes 7-9/10`.
fn first_byte(range: &str) -> Option<u64> {
    range.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}

fn digest(file: &mut File) -> io::Result<String> {
    file.rewind()?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; CHUNK]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_digests_are_read() {
        assert_eq!(first_byte("bytes 7-9/10"), Some(7));
        assert_eq!(first_byte("bytes */10"), None);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest(&mut file).unwrap(), abc);
    }

    /// A write to a full disk is told as that, and not as a broken transfer.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_the_disks_fault() {
        let mut full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut have = 0;
        match copy(&b"abc"[..], &mut full, (&mut have, 3), &ProgressBar::hidden()) {
            Copied::Disk(e) => {
                assert!(matches!(Cause::disk(Path::new("x"), e), Cause::DiskFull { .. }));
            }
            _ => panic!("written to /dev/full"),
        }
        assert_eq!(have, 0);
    }
}
