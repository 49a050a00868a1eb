/** Nodes and attributes: reading them, making them. */
import { type AttributeProto, type NodeProto, onnx, type TensorProto, toNumber } from '../onnx/proto.js';

const { AttributeType } = onnx.AttributeProto;

/** The op's name with its domain, where that is not ONNX's own: `MatMul`, `com.microsoft.FusedMatMul`. */
export function opName(node: NodeProto): string {
  return isOnnxDomain(node.domain) ? (node.opType ?? '') : `${node.domain}.${node.opType}`;
}

/** Whether a domain is ONNX's own, which has two spellings. */
export function isOnnxDomain(domain: string | null | undefined): boolean {
  return !domain || domain === 'ai.onnx';
}

export function attribute(node: NodeProto, name: string): AttributeProto | undefined {
  return node.attribute?.find((candidate) => candidate.name === name);
}

export function intAttribute(node: NodeProto, name: string, absent: number): number {
  const found = attribute(node, name);
  return found?.i === undefined || found.i === null ? absent : toNumber(found.i);
}

export function floatAttribute(node: NodeProto, name: string, absent: number): number {
  return attribute(node, name)?.f ?? absent;
}

export function intsAttribute(node: NodeProto, name: string): number[] | undefined {
  const found = attribute(node, name);
  return found ? (found.ints ?? []).map((value) => toNumber(value)) : undefined;
}

export function stringAttribute(node: NodeProto, name: string, absent: string): string {
  const bytes = attribute(node, name)?.s;
  return bytes ? Buffer.from(bytes).toString('utf8') : absent;
}

/** An attribute of the type that the value calls for; a number becomes an INT. */
export function makeAttribute(name: string, value: number | string | number[] | TensorProto): AttributeProto {
  if (typeof value === 'number') return { name, type: AttributeType.INT, i: value };
  if (typeof value === 'string') return { name, type: AttributeType.STRING, s: Buffer.from(value, 'utf8') };
  if (Array.isArray(value)) return { name, type: AttributeType.INTS, ints: value };
  return { name, type: AttributeType.TENSOR, t: value };
}

export function setAttribute(node: NodeProto, name: string, value: number | string): void {
  const made = makeAttribute(name, value);
  const at = node.attribute?.findIndex((candidate) => candidate.name === name) ?? -1;
  if (at >= 0 && node.attribute) node.attribute[at] = made;
  else node.attribute = [...(node.attribute ?? []), made];
}

export interface NodeSpec {
  name?: string;
  domain?: string;
  attributes?: Record<string, number | string | number[] | TensorProto>;
}

/** A new node. */
export function makeNode(opType: string, input: string[], output: string[], spec: NodeSpec = {}): NodeProto {
  return onnx.NodeProto.create({
    opType,
    input,
    output,
    ...(spec.name ? { name: spec.name } : {}),
    ...(spec.domain ? { domain: spec.domain } : {}),
    attribute: Object.entries(spec.attributes ?? {}).map(([name, value]) => makeAttribute(name, value)),
  });
}
