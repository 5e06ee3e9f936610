//! What nobody can write. Each entry is two tests of the documentation: its first lines compile, and
//! with the last one they do not. (A stable rustdoc does not compare the error codes:
//! `RUSTC_BOOTSTRAP=1 cargo test -p dma-buf --doc` does.)

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
            "use dma_buf::*;\nuse dma_fence::*;\nasync fn client(",
            $($args, ", ",)* ") {\n", $right, "\n", $wrong, "\n}\nfn main() {}",
        )
    };
}

misuse! {
    /// What is reserved has not noted yet what it waits for, nor made room.
    s4_39_commit_without_waits("reserved: Reserved<'_>", "fence: (Signaler, Fence)")
    "reserved.back_off();"
    E0599 "fn skip(reserved: Reserved<'_>, fence: (Signaler, Fence)) { reserved.commit(fence); }"
}

misuse! {
    /// A ticket that has reserved nothing has nothing to wait for.
    s4_39_waits_before_reserving("ticket: Ticket<'_>")
    "let reserved = ticket.reserve().await.unwrap();"
    E0599 "fn skip(ticket: Ticket<'_>) { ticket.queue_waits(); }"
}

misuse! {
    /// Work is committed once.
    s4_39_commit_twice("waited: Waited<'_>", "one: (Signaler, Fence)", "two: (Signaler, Fence)")
    "let committed = waited.commit(one);"
    E0382 "let committed = waited.commit(two);"
}

misuse! {
    /// And ends once.
    s4_39_signal_twice("committed: Committed")
    "committed.signal(Ok(()));"
    E0382 "committed.signal(Ok(()));"
}

misuse! {
    /// Who has committed holds nothing, and lists nothing more.
    s4_39_use_after_commit("waited: Waited<'_>", "one: (Signaler, Fence)")
    "let seq = waited.seq();\nlet committed = waited.commit(one);"
    E0382 "let seq = waited.seq();"
}

misuse! {
    /// A ticket is what the manager makes of it.
    s4_11_a_ticket_is_opaque("ticket: Ticket<'_>")
    "let seq = ticket.seq();"
    E0616 "let me = ticket.me;"
}

misuse! {
    /// There is one of it.
    s4_11_a_ticket_is_not_copied("ticket: Ticket<'_>")
    "let seq = ticket.seq();"
    E0599 "let two = ticket.clone();"
}

misuse! {
    /// Its number stays.
    s4_18_a_number_does_not_change("ticket: Ticket<'_>")
    "let seq: Seq = ticket.seq();"
    E0616 "let mut seq = seq;\nseq.0 = 1;"
}

misuse! {
    /// Fences are put into a reservation by who has it, and nobody else.
    s4_18_no_fence_without_a_reservation("resv: &Resv", "fence: Fence")
    "let fences = resv.fences();"
    E0624 "resv.publish(fence, Usage::Write);"
}

misuse! {
    /// What is reserved is not freed.
    s4_31_freed_while_reserved("manager: &Manager", "resv: Resv")
    "let reserved = manager.reserve(\"me\", [(&resv, Usage::Read)]).await;\ndrop(reserved);"
    E0505 "let reserved = manager.reserve(\"me\", [(&resv, Usage::Read)]).await;\ndrop(resv);\ndrop(reserved);"
}

misuse! {
    /// Nor what somebody waits for.
    s4_31_freed_while_waited_for("manager: &Manager", "resv: Resv")
    "manager.wait_unreserved(&resv).await;"
    E0505 "let wait = manager.wait_unreserved(&resv);\ndrop(resv);\nwait.await;"
}

misuse! {
    /// Who has begun to read has no way to write.
    s4_3_a_reader_writes("read: CpuRead")
    "let bytes = read.chunks().count();"
    E0599 "let bytes = read.chunks_mut().count();"
}

misuse! {
    /// An access ends once.
    s4_6_an_access_ends_twice("access: DmaAccess<'_>")
    "drop(access);"
    E0382 "drop(access);"
}

misuse! {
    /// What a device is at is not unmapped.
    s4_6_unmapped_during_an_access("mut device: Attachment")
    "let access = device.begin_async(hal::dma::Direction::ToDevice);\ndrop(access);\nlet _ = device.unmap();"
    E0502 "let access = device.begin_async(hal::dma::Direction::ToDevice);\nlet _ = device.unmap();\ndrop(access);"
}

misuse! {
    /// Nor is it detached.
    s4_6_detached_during_an_access("device: Attachment")
    "let access = device.begin_async(hal::dma::Direction::ToDevice);\ndrop(access);"
    E0505 "let access = device.begin_async(hal::dma::Direction::ToDevice);\ndrop(device);\ndrop(access);"
}
