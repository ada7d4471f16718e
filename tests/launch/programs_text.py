"""Texts of small compiled programs, in the form in which the TPU compiler prints them."""

# Backslashes join the lines, which are longer than this file's.

# A loop of seven iterations with an 8x16 by 16x16 product and an all-reduce in each, and one more
# product outside.
LOOP = """\
HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%product (p0: bf16[8,16], p1: bf16[16,16]) -> bf16[8,16] {
  %p0 = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %p1 = bf16[16,16]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[8,16]{1,0:T(8,128)(2,1)} convolution(%p0, %p1), \
dim_labels=bf_io->bf, metadata={op_name="jit(f)/while/body/dot_general"}
}

%body (state: (s32[], bf16[8,16], /*index=2*/bf16[16,16])) -> (s32[], bf16[8,16], bf16[16,16]) {
  %state = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)}, /*index=2*/bf16[16,16]{1,0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%state), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%counter, %one)
  %x = bf16[8,16]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %w = bf16[16,16]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=2
  %fused = bf16[8,16]{1,0:T(8,128)(2,1)} fusion(%x, %w), kind=kOutput, calls=%product, \
metadata={op_name="jit(f)/while/body/dot_general"}
  %reduced = bf16[8,16]{1,0:T(8,128)(2,1)} all-reduce(%fused), channel_id=1, \
replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %tuple = (s32[], bf16[8,16], /*index=2*/bf16[16,16]) tuple(%next, %reduced, /*index=2*/%w)
}

%condition (state.1: (s32[], bf16[8,16], bf16[16,16])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)}, bf16[16,16]{1,0}) parameter(0)
  %counter.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %limit = s32[]{:T(128)} constant(7)
  ROOT %less = pred[]{:T(512)} compare(%counter.1, %limit), direction=LT
}

ENTRY %main (arg0: bf16[8,16], arg1: bf16[16,16]) -> bf16[8,16] {
  %arg0 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %arg1 = bf16[16,16]{1,0:T(8,128)(2,1)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %start = s32[]{:T(128)} copy(%zero)
  %initial = (s32[], bf16[8,16], bf16[16,16]) tuple(%start, %arg0, %arg1)
  %loop = (s32[], bf16[8,16], bf16[16,16]) while(%initial), condition=%condition, body=%body
  %out = bf16[8,16]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
  ROOT %last = bf16[8,16]{1,0:T(8,128)(2,1)} fusion(%out, %arg1), kind=kOutput, calls=%product
}
"""

# The body reads one layer of a stack, and writes one layer of another in place.
SLICES = """\
HloModule jit_g

%one_layer (p: f32[28,128,128], i: s32[]) -> f32[128,128] {
  %p = f32[28,128,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %nought = s32[] constant(0)
  %cut = f32[1,128,128]{2,1,0} dynamic-slice(%p, %i, %nought, %nought), \
dynamic_slice_sizes={1,128,128}
  ROOT %flat = f32[128,128]{1,0} bitcast(%cut)
}

%keep_layer (p.1: f32[28,128,128], u: f32[128,128], i.1: s32[]) -> f32[28,128,128] {
  %p.1 = f32[28,128,128]{2,1,0} parameter(0)
  %u = f32[128,128]{1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  %nought.1 = s32[] constant(0)
  %flat.1 = f32[1,128,128]{2,1,0} bitcast(%u)
  ROOT %updated = f32[28,128,128]{2,1,0} dynamic-update-slice(%p.1, %flat.1, %i.1, %nought.1, \
%nought.1)
}

ENTRY %main (stack: f32[28,128,128], at: s32[], kept: f32[28,128,128]) -> f32[28,128,128] {
  %stack = f32[28,128,128]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %kept = f32[28,128,128]{2,1,0} parameter(2)
  %layer = f32[128,128]{1,0} fusion(%stack, %at), kind=kLoop, calls=%one_layer
  ROOT %result = f32[28,128,128]{2,1,0} fusion(%kept, %layer, %at), kind=kLoop, calls=%keep_layer
}
"""

# An all-gather of 4x8 to 4x32 that overlaps with a product: started in one fusion, continued in the
# next, ended in a third.
GATHER_BESIDE_PRODUCT = """\
HloModule jit_h, is_scheduled=true

%begun (g: bf16[4,8]) -> (bf16[4,8], bf16[4,32], u32[]) {
  %g = bf16[4,8]{1,0} parameter(0)
  %all-gather.1 = bf16[4,32]{1,0} all-gather(%g), channel_id=1, replica_groups=[1,4]<=[4], \
dimensions={1}, \
backend_config={"async_collective_fusion_config":{"flag_start":"-1","flag_end":"-1"}}
  ROOT %start = (bf16[4,8]{1,0}, bf16[4,32]{1,0}, u32[]{:S(2)}) custom-call(%all-gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%same (w.1: bf16[16,16]) -> bf16[16,16] {
  %w.1 = bf16[16,16]{1,0} parameter(0)
  ROOT %seen = bf16[16,16]{1,0} bitcast(%w.1)
}

%carried_on (g.2: bf16[4,8], out.2: bf16[4,32], x.2: bf16[8,16], w.2: bf16[16,16]) -> \
(bf16[8,16], bf16[4,8], bf16[4,32], bf16[4,32]) {
  %g.2 = bf16[4,8]{1,0} parameter(0)
  %out.2 = bf16[4,32]{1,0} parameter(1)
  %x.2 = bf16[8,16]{1,0} parameter(2)
  %w.2 = bf16[16,16]{1,0} parameter(3)
  %weight = bf16[16,16]{1,0} fusion(%w.2), kind=kLoop, calls=%same
  %product = bf16[8,16]{1,0} convolution(%x.2, %weight), dim_labels=bf_io->bf
  %all-gather.2 = bf16[4,32]{1,0} all-gather(%g.2), channel_id=1, replica_groups=[1,4]<=[4], \
dimensions={1}, backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
  ROOT %all = (bf16[8,16]{1,0}, bf16[4,8]{1,0}, bf16[4,32]{1,0}, bf16[4,32]{1,0}) tuple(%product, \
%g.2, %out.2, %all-gather.2)
}

%ended (g.3: bf16[4,8], out.3: bf16[4,32]) -> bf16[4,32] {
  %g.3 = bf16[4,8]{1,0} parameter(0)
  %out.3 = bf16[4,32]{1,0} parameter(1)
  %all-gather.3 = bf16[4,32]{1,0} all-gather(%g.3), channel_id=1, replica_groups=[1,4]<=[4], \
dimensions={1}, backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
  ROOT %done = bf16[4,32]{1,0} custom-call(%g.3, %out.3, %all-gather.3), \
custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (part: bf16[4,8], x: bf16[8,16], w: bf16[16,16]) -> (bf16[8,16], bf16[4,32]) {
  %part = bf16[4,8]{1,0} parameter(0)
  %x = bf16[8,16]{1,0} parameter(1)
  %w = bf16[16,16]{1,0} parameter(2)
  %first = (bf16[4,8]{1,0}, bf16[4,32]{1,0}, u32[]{:S(2)}) fusion(%part), kind=kCustom, \
output_to_operand_aliasing={{0}: (0, {})}, calls=%begun
  %part.1 = bf16[4,8]{1,0} get-tuple-element(%first), index=0
  %whole.1 = bf16[4,32]{1,0} get-tuple-element(%first), index=1
  %second = (bf16[8,16]{1,0}, bf16[4,8]{1,0}, bf16[4,32]{1,0}, bf16[4,32]{1,0}) fusion(%part.1, \
%whole.1, %x, %w), kind=kOutput, output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {}), {3}: (1, \
{})}, calls=%carried_on
  %made = bf16[8,16]{1,0} get-tuple-element(%second), index=0
  %part.2 = bf16[4,8]{1,0} get-tuple-element(%second), index=1
  %whole.2 = bf16[4,32]{1,0} get-tuple-element(%second), index=2
  %third = bf16[4,32]{1,0} fusion(%part.2, %whole.2), kind=kCustom, \
output_to_operand_aliasing={{}: (1, {})}, calls=%ended
  ROOT %both = (bf16[8,16]{1,0}, bf16[4,32]{1,0}) tuple(%made, %third)
}
"""
