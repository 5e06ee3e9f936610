//! What clients cannot write. Each entry is two tests of the documentation: its first lines
//! compile, and with the last one they do not. (A stable rustdoc does not compare the error codes:
//! `RUSTC_BOOTSTRAP=1 cargo test -p dmaengine --doc` does.)

macro_rules! misuse {
    ($(#[doc = $why:literal])* $name:ident($($args:literal),*) $right:literal $code:ident $wrong:literal) => {
        $(#[doc = $why])*
        #[doc = concat!("```no_run\n", misuse!(@ ($($args),*) $right, ""), "\n```")]
        #[doc = concat!("```compile_fail,", stringify!($code), "\n",
            misuse!(@ ($($args),*) $right, $wrong), "\n```")]
        mod $name {}
    };
    (@ ($($args:literal),*) $right:literal, $wrong:literal) => {
        concat!(
            "use dmaengine::*;\nuse hal::dma::*;\nuse std::sync::Arc;\nasync fn client(",
            $($args, ", ",)* ") {\n", $right, "\n", $wrong, "\n}\nfn main() {}",
        )
    };
}

misuse! {
    /// A descriptor is submitted once.
    double_submit("channel: Channel", "descriptor: Descriptor<Memcpy>")
    "let _ = channel.submit(descriptor);"
    E0382 "let _ = channel.submit(descriptor);"
}

misuse! {
    /// Its buffers come back once.
    double_finish("submitted: Submitted<Memcpy>")
    "let _ = submitted.finish().await;"
    E0382 "let _ = submitted.finish().await;"
}

misuse! {
    /// A prepared operation owns its buffers.
    use_of_prepared_buffers("channel: Channel", "dst: Destination", "src: Source")
    "let _ = channel.prep_memcpy(dst, src, Flags::empty());"
    E0382 "let _ = dst.into_memory();"
}

misuse! {
    /// What is written is not read: a destination owns its memory.
    source_and_destination_overlap("memory: Memory")
    "let dst = Destination::new(memory, 0..64);"
    E0382 "let src = Source::new(Arc::new(memory), 32..96);"
}

misuse! {
    /// P and Q go to different places.
    one_place_for_both_parities("dst: Destination", "srcs: Weighted")
    "let p = Some(dst);"
    E0382 "let pq = Pq { p, q: Some(dst), srcs };"
}

misuse! {
    /// A released channel is not used.
    use_after_release("channel: Channel")
    "channel.release().await;"
    E0382 "channel.issue_pending();"
}

misuse! {
    /// It is released once.
    double_release("channel: Channel")
    "channel.release().await;"
    E0382 "channel.release().await;"
}

misuse! {
    /// A reference to a public channel is put once.
    s1_7_double_put("reference: ChanRef")
    "drop(reference);"
    E0382 "drop(reference);"
}

misuse! {
    /// A reference that was put is not used.
    s1_7_use_after_put("reference: ChanRef")
    "drop(reference);"
    E0382 "let _ = reference.open();"
}

misuse! {
    /// Who uses a public channel keeps its reference.
    put_while_open("reference: ChanRef")
    "let opened = reference.open().unwrap();\nopened.issue_pending();"
    E0505 "drop(reference);\nopened.issue_pending();"
}

misuse! {
    /// Interest is given up once.
    double_put_of_interest("interest: Interest")
    "interest.put().await;"
    E0382 "interest.put().await;"
}

misuse! {
    /// What get, put and balance change lies behind the registry's lock: nobody has it without.
    s0_12_get_put_and_balance_only_under_the_lock("registry: Registry")
    "let interest = registry.get_interest().await;\ninterest.put().await;"
    E0616 "registry.public.leave();"
}

misuse! {
    /// Nor is there a second put to one get.
    s0_12_no_interest_without_a_get("interest: Interest")
    "let _ = interest.refused();"
    E0599 "interest.clone().put().await;"
}
