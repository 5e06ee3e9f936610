//! Links the image by `linker.ld`.

fn main() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    println!("cargo:rerun-if-changed={root}/linker.ld");
    println!("cargo:rustc-link-arg=-T{root}/linker.ld");
    println!("cargo:rustc-link-arg=-zmax-page-size=4096");
}
