"""Which operations autocast runs in which dtype: data, to be read and printed."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from jinit._tables import format_table
from jinit.amp.casting.op_names import warn_of_names

__all__ = ["OPS", "OpLists"]


@dataclass(frozen=True)
class OpLists:
    """Primitives by what becomes of their float operands; those in no list promote or match.

    Attributes:
        half: Cast to the half dtype: products and convolutions. A product promotes like any other
            operation where it sums nothing (an outer product), or selects or counts (one factor
            is made of booleans, integers or constants, as a one-hot code is); an inner product,
            ``jnp.dot`` of two vectors or a batch of them, is a sum, and float32 where
            ``reduce_sum`` is; and one that asks for
            a precision of its own keeps the dtypes of the traced program. What it accumulates
            in cannot be asked for: ``jnp`` itself sets ``preferred_element_type``.
        float32: Cast to float32: what loses range or precision in half.
        declared: Cast back to the dtypes of the traced program: what reinterprets bits, draws
            random numbers or has no half version. So is, unless it is in another list, whatever
            calls something for given dtypes: exported functions, callbacks, foreign calls.
        separate: Operands that need not agree with each other, and are left as they come.
        float32_calls: Not primitives but functions, by the name that JAX jits them under, which
            run whole in float32: interpolation, which is made of products.
    """

    half: frozenset[str]
    float32: frozenset[str]
    declared: frozenset[str]
    separate: frozenset[str]
    float32_calls: frozenset[str] = frozenset()

    @property
    def listed(self) -> frozenset[str]:
        """The primitives of all lists."""
        return self.half | self.float32 | self.declared | self.separate

    def extend(
        self,
        *,
        half: Iterable[str] = (),
        float32: Iterable[str] = (),
        promote: Iterable[str] = (),
        declared: Iterable[str] = (),
        separate: Iterable[str] = (),
    ) -> "OpLists":
        """Returns the lists with some primitives moved.

        Args:
            half: The names of primitives that go to this list, and out of every other.
            float32: Likewise.
            promote: Those that go out of every list.
            declared: Likewise.
            separate: Likewise.

        Raises:
            TypeError: If what should be names is one string, or not strings.
            ValueError: If a name is given twice.

        Warns:
            UserWarning: A name is that of a function of JAX, or nearly that of a primitive: it
                moves nothing, unless a primitive of one's own has it.

        Example:
            >>> ops = OPS.extend(half=["my_kernel"], promote=["logistic"])
            >>> "my_kernel" in ops.half, "logistic" in ops.float32
            (True, False)
        """
        given = {"half": half, "float32": float32, "declared": declared, "separate": separate}
        moved = {name: _names(name, ops) for name, ops in {**given, "promote": promote}.items()}
        every = sorted(op for ops in moved.values() for op in ops)
        twice = sorted({op for op in every if every.count(op) > 1})
        if twice:
            raise ValueError(f"a primitive can go to one list, but given twice: {', '.join(twice)}")
        warn_of_names(every, self.listed, stacklevel=2)
        lists = {name: (getattr(self, name) - {*every}) | moved[name] for name in given}
        return replace(self, **lists)

    def __str__(self) -> str:
        rows = [[f.name, ", ".join(sorted(getattr(self, f.name)))] for f in fields(self)]
        return format_table(["dtype", "primitives"], rows)


def _names(name: str, ops: Iterable[str]) -> frozenset[str]:
    if isinstance(ops, str) or not isinstance(ops, Iterable):
        raise TypeError(f"{name} must be an iterable of primitives' names, not {ops!r}")
    names = tuple(ops)
    for op in names:
        if not isinstance(op, str):
            raise TypeError(
                f"{name} must hold the names of primitives, as amp.explain shows them, not {op!r}"
            )
    return frozenset(names)


OPS = OpLists(
    half=frozenset("conv_general_dilated dot_general ragged_dot ragged_dot_general".split()),
    float32=frozenset(
        """
        acos acosh asin asinh atanh cosh cumlogsumexp cumprod cumsum digamma erf erf_inv erfc exp
        exp2 expm1 integer_pow lgamma log log1p log2 logistic pow psum psum_invariant reduce_prod
        reduce_scatter reduce_sum reduce_window_sum rsqrt sinh sqrt square tan
        """.split()
    ),
    declared=frozenset(
        """
        bessel_i0e bessel_i1e bitcast_convert_type cholesky complex custom_call custom_lin eig
        eigh fft hessenberg householder_product igamma igamma_grad_a igammac linear_solve lu
        nextafter polygamma qr
        random_bits random_gamma random_seed random_unwrap random_wrap reduce_precision
        regularized_incomplete_beta rng_bit_generator rng_uniform schur select_and_gather_add svd
        threefry2x32 triangular_solve tridiagonal tridiagonal_solve zeta
        """.split()
    ),
    separate=frozenset("debug_callback debug_print name optimization_barrier sort split".split()),
    float32_calls=frozenset("_interp _map_coordinates _resize".split()),
)
