//! What nobody can write. Each entry is two tests of the documentation: its first lines compile, and
//! with the last one they do not. (A stable rustdoc does not compare the error codes:
//! `RUSTC_BOOTSTRAP=1 cargo test -p vcm --doc` does.)

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
            "use std::sync::Arc;\nuse vcm::*;\nfn owner(",
            $($args, ", ",)* ") {\n", $right, "\n", $wrong, "\n}\nfn main() {}",
        )
    };
}

misuse! {
    /// Who owns a reservation cannot take it from others.
    s2_6_no_owner_destroys("reservation: Reservation")
    "let other = reservation.clone();\ndrop(reservation);\ndrop(other);"
    E0599 "fn end(reservation: &Reservation) { reservation.destroy(); }"
}

misuse! {
    /// Nor can the context.
    s2_6_no_context_destroys("vcm: &Arc<Vcm>", "reservation: Reservation")
    "vcm.deactivate().unwrap();\ndrop(reservation);"
    E0599 "fn end(vcm: &Arc<Vcm>, reservation: &Reservation) { vcm.unreserve(reservation); }"
}

misuse! {
    /// Who has let go of it has it no more.
    s2_3_let_go_twice("reservation: Reservation")
    "drop(reservation);"
    E0382 "drop(reservation);"
}

misuse! {
    /// Handing it on is a move.
    s2_4_handed_on_and_kept("reservation: Reservation")
    "let elsewhere = vec![reservation];"
    E0382 "let size = reservation.size();"
}

misuse! {
    /// Whether it is still there must be asked.
    s2_2_a_dead_one_is_asked("weak: WeakReservation")
    "let start = weak.upgrade().unwrap().start();"
    E0599 "let start = weak.start();"
}

misuse! {
    /// And the answer may be that it is not.
    s2_2_the_answer_is_looked_at("weak: WeakReservation")
    "let there: Result<Reservation, Error> = weak.upgrade();"
    E0308 "let there: Reservation = weak.upgrade();"
}
