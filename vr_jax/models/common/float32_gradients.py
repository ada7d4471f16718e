"""Arithmetic with float32 weights in another dtype, whose gradients are summed in float32.

A weight is rounded to the dtype of activations where it is used. By plain differentiation its
gradient would be rounded too before it is summed over devices, whose sums would be rounded once
more at every device. Here what each device has of it stays float32, and so do sums and result.

Where the weight has the dtype that it is used in, these are the plain operations.
"""

import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float


def dot(
  rows: Float[Array, "*rows inner"], weight: Float[Array, "inner out"], precision: lax.Precision
) -> Float[Array, "*rows out"]:
  """rows @ weight, in the dtype of `rows`."""
  if weight.dtype == rows.dtype:
    return jnp.dot(rows, weight, precision=precision)
  return _dot(rows, weight, precision)


def multiply(
  x: Float[Array, "..."], scale: Float[Array, "..."], dtype: DTypeLike
) -> Float[Array, "..."]:
  """x * scale, which is rounded to `dtype` and has the last axes of `x`."""
  if scale.dtype == dtype:
    return x * scale
  return _multiply(x, scale, jnp.dtype(dtype))


def add(x: Float[Array, "..."], bias: Float[Array, "..."], dtype: DTypeLike) -> Float[Array, "..."]:
  """x + bias, which is rounded to `dtype` and has the last axes of `x`."""
  if bias.dtype == dtype:
    return x + bias
  return _add(x, bias, jnp.dtype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dot(rows: Array, weight: Array, precision: lax.Precision) -> Array:
  return jnp.dot(rows, weight.astype(rows.dtype), precision=precision)


def _dot_forward(rows: Array, weight: Array, precision: lax.Precision) -> tuple[Array, Any]:
  # Not `_dot`: a rematerialisation policy that keeps products has to see this one.
  return jnp.dot(rows, weight.astype(rows.dtype), precision=precision), (rows, weight)


def _dot_backward(precision: lax.Precision, saved: Any, outer: Array) -> tuple[Array, Array]:
  rows, weight = saved
  free = tuple(range(rows.ndim - 1))
  of_rows = jnp.dot(outer, weight.astype(rows.dtype).T, precision=precision)
  of_weight = lax.dot_general(
    rows,
    outer,
    ((free, free), ((), ())),
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  return of_rows, of_weight.astype(weight.dtype)


_dot.defvjp(_dot_forward, _dot_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _multiply(x: Array, scale: Array, dtype: jnp.dtype) -> Array:
  return x * scale.astype(dtype)


def _multiply_forward(x: Array, scale: Array, dtype: jnp.dtype) -> tuple[Array, Any]:
  return _multiply(x, scale, dtype), (x, scale)


def _multiply_backward(dtype: jnp.dtype, saved: Any, outer: Array) -> tuple[Array, Array]:
  x, scale = saved
  return outer * scale.astype(dtype), _sum(x.astype(jnp.float32) * outer, scale)


_multiply.defvjp(_multiply_forward, _multiply_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _add(x: Array, bias: Array, dtype: jnp.dtype) -> Array:
  return x + bias.astype(dtype)


def _add_forward(x: Array, bias: Array, dtype: jnp.dtype) -> tuple[Array, Any]:
  return _add(x, bias, dtype), bias


def _add_backward(dtype: jnp.dtype, saved: Any, outer: Array) -> tuple[Array, Array]:
  del dtype
  return outer, _sum(outer, saved)


_add.defvjp(_add_forward, _add_backward)


def _sum(x: Array, weight: Array) -> Array:
  """Sums in float32 over the leading axes that the weight does not have."""
  total = x.astype(jnp.float32).sum(axis=tuple(range(x.ndim - weight.ndim)))
  return total.astype(weight.dtype)
