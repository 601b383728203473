import jax
import jax.numpy as jnp
from jax.extend import core as jex

from jinit.tracing import equations_of, replace_beside


def program(fn, *args):
    return jax.make_jaxpr(fn)(*args).jaxpr


def names(jaxpr):
    return [equation.primitive.name for equation in equations_of(jaxpr)]


def literals(jaxpr):
    return [
        float(atom.val)
        for equation in equations_of(jaxpr)
        for atom in equation.invars
        if isinstance(atom, jex.Literal) and jnp.issubdtype(atom.aval.dtype, jnp.floating)
    ]


def others_literal(atom, other):
    both = isinstance(atom, jex.Literal) and isinstance(other, jex.Literal)
    return jex.Literal(other.val, atom.aval) if both else atom


def computes(equation):
    return equation.primitive.name != "convert_element_type"


def adding(constant, *, widened=False):
    def fn(x):
        shifted = jax.jit(lambda x: x + constant)
        x = jax.lax.convert_element_type(x, jnp.float16) if widened else x
        return jax.lax.cond(x > 0, shifted, jnp.tanh, x)

    return fn


def test_equations_of_branches_and_calls_are_found_where_they_stand():
    found = names(program(lambda x: -adding(2.0)(x), 1.0))
    assert found == "gt convert_element_type cond tanh jit add neg".split()


def test_operands_are_replaced_in_branches_and_calls_whatever_does_not_count_between_them():
    halves = program(adding(2.0, widened=True), jnp.float32(1))
    wide = program(adding(3.0), jnp.float32(1))
    found = replace_beside(halves, wide, others_literal, counts=computes)
    assert 3.0 in literals(found)
    assert 2.0 not in literals(found)
    assert names(found) == names(halves)


def test_a_program_of_other_equations_changes_nothing():
    first, other = program(adding(2.0), 1.0), program(jnp.tanh, 1.0)
    assert replace_beside(first, other, others_literal, counts=computes) is first


def test_a_function_called_twice_stays_one():
    def twice(constant):
        shifted = jax.jit(lambda x: x + constant)
        return lambda x: shifted(x) * shifted(x)

    found = replace_beside(
        program(twice(2.0), 1.0), program(twice(3.0), 1.0), others_literal, counts=computes
    )
    first, second = (e.params["jaxpr"] for e in found.eqns if "jaxpr" in e.params)
    assert first is second
    assert literals(first.jaxpr) == [3.0]
